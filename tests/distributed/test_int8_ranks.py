"""W8A8 on several ranks: as on one, from whole folders and from folders split and compressed by rank."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.models import run_case, save_folder
from tests.distributed.test_layouts import Together, on_ranks

import telechat
from telechat.checkpoint import load_model
from telechat.cli.main import main
from telechat.engine import LLM, SamplingParams
from telechat.errors import CheckpointError
from telechat.models.paged import TorchExecutor
from telechat.parallel.groups import Groups
from telechat.parallel.sharding import Layout
from telechat.parallel.tensor import RankPart
from telechat.quant import Int8Config
from telechat.quant.compress import compress

ROOT = Path(__file__).resolve().parents[2]
DENSE = {"heads": 8, "kv_heads": 2, "vocab": 300}
EXPERTS = {"heads": 4, "kv_heads": 2, "experts": 4, "vocab": 300}


def int8_folder(folder: Path, shape: dict[str, Any], **settings: Any) -> Path:
    plain = save_folder(folder / "plain", shape)
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randint(300, (40,), generator=generator).tolist() for _ in range(6)]
    return telechat.quantize(plain, folder / "int8", Int8Config(**settings), examples=rows)


def computed(folder: Path, groups: Groups | None = None) -> list[torch.Tensor]:
    """Logits and hidden states of `run_case`, on one rank or as one of several."""
    part = None if groups is None else RankPart(groups)
    executor = TorchExecutor(load_model(folder, device="cpu", dtype="float32", part=part))
    return run_case(executor if groups is None else Together(executor, groups))


def difference(folder: Path, layout: Layout, expected: list[torch.Tensor]) -> float:
    """The largest error of any logit over their spread."""
    found = on_ranks(layout, lambda groups: computed(folder, groups))[0]
    pairs = list(zip(found, expected, strict=True))
    assert all(ours.shape == whole.shape for ours, whole in pairs)
    return max(float((ours - whole).abs().max() / whole.std()) for ours, whole in pairs)


@pytest.mark.parametrize(
    ("shape", "layout", "settings", "limit"),
    [
        # An activation within rounding of the middle of two integers may fall to the other side.
        pytest.param(DENSE, Layout(tp=2), {}, 2e-2, id="static-tp2"),
        pytest.param(DENSE, Layout(tp=4), {"fraction": 0.011}, 2e-2, id="sparse-tp4"),
        pytest.param(EXPERTS, Layout(tp=2, ep=2), {}, 2e-2, id="static-experts"),
        # Each rank has a scale for its own share of a row.
        pytest.param(DENSE, Layout(tp=2), {"is_dynamic": True}, 1e-1, id="dynamic-tp2"),
    ],
)
def test_ranks_compute_as_one(
    tmp_path: Path, shape: dict[str, Any], layout: Layout, settings: dict[str, Any], limit: float
) -> None:
    folder = int8_folder(tmp_path, shape, **settings)
    assert difference(folder, layout, computed(folder)) < limit


def test_compressed_parts_are_the_parts_of_the_whole(tmp_path: Path) -> None:
    """To the bit, for every parameter of every rank; of a mixture of experts too."""
    for number, (shape, tp) in enumerate(((DENSE, 4), (EXPERTS, 2))):
        folder = int8_folder(tmp_path / str(number), shape, fraction=0.011)
        out, split = tmp_path / f"sc{number}", tmp_path / f"s{number}"
        assert compress(folder, out, tp=tp, split_out=split)
        for rank in range(tp):
            states = []
            for place in (folder, out, split):
                part = RankPart(Groups(Layout(tp=tp), rank))
                model = load_model(place, device="cpu", dtype="float32", part=part)
                states.append(model.state_dict())
            for other in states[1:]:
                assert sorted(other) == sorted(states[0])
                assert all(torch.equal(other[name], value) for name, value in states[0].items())
            biases = [v for n, v in states[0].items() if n.endswith("dense.quant_bias")]
            assert biases and all(bool(value.any()) == (rank == 0) for value in biases)


def page_blocks() -> list[list[list[str]]]:
    """The commands of the page, as words, block by block."""
    page = (ROOT / "docs" / "sparse.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    return [[shlex.split(line) for line in block.splitlines()] for block in blocks]


def test_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first commands on the demo model, and what they promise of the size."""
    monkeypatch.chdir(tmp_path)
    for words in page_blocks()[0]:
        assert words[0] == "telechat" and main(words[1:]) == 0, words
    assert "生抽颜色浅" in capsys.readouterr().out
    [whole] = Path("runs/demo-w8a8s").glob("*.safetensors")
    parts = list(Path("runs/demo-w8a8sc").glob("part*/*.safetensors"))
    assert len(parts) == 2
    assert sum(part.stat().st_size for part in parts) <= 0.75 * whole.stat().st_size
    integers = [value.numel() for value in load_file(whole).values() if value.dtype == torch.int8]
    packed = 0
    for part in parts:
        types = json.loads((part.parent / "quant_model_description.json").read_text())
        stored = load_file(part)
        packed += sum(value.nbytes for name, value in stored.items() if types[name] == "W8A8SC")
    assert packed <= 0.52 * sum(integers)


def test_torchrun_then_the_same_tokens(tmp_path: Path) -> None:
    """The original tool's way: each process makes its part; then tp 2 answers as one rank with the whole."""
    folder = int8_folder(tmp_path, DENSE, fraction=0.011)
    out = tmp_path / "w8a8sc"
    [[program, *words]] = page_blocks()[1]
    assert program == "torchrun"
    named = {"--model_path": str(folder), "--save_directory": str(out)}
    words = [named.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {str(out)}
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"part0-of-2", "part1-of-2"}
    prompts = [list(range(10 + i, 40 + 7 * i)) for i in range(6)]
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    found = []
    for place, tp in ((folder, 1), (out, 2)):
        llm = LLM(place, tp=tp, max_model_len=128)
        try:
            found.append([output.outputs[0].token_ids for output in llm.generate(prompts, params)])
        finally:
            llm.close()
    assert found[0] == found[1]
    with pytest.raises(CheckpointError, match="compressed for tp 2; it cannot be loaded with tp 1"):
        LLM(out)
    with pytest.raises(CheckpointError, match="compressed for tp 2; it cannot be loaded with tp 4"):
        LLM(out, tp=4)

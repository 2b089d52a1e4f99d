"""W8A8SC: sparse folders split by rank and compressed; killed and repeated; what it refuses."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.quant.quant_models import EXPERTS
from tests.unit.quant.test_int8_folder import int8, int8_layers, plain_folder

from telechat import load_model
from telechat.checkpoint import ascend, check_folder
from telechat.checkpoint.nibbles import Encoded, encode
from telechat.checkpoint.parts import weights_folder
from telechat.cli.main import main
from telechat.cli.quantize_compress import tp_and_rank
from telechat.errors import CheckpointError, ConfigError, UsageError
from telechat.quant.compress import PartDone, compress

FILE = "quant_model_weight_w8a8sc.safetensors"
DENSE = "transformer.h.0.self_attention.dense"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    return int8(plain_folder(folder / "plain"), folder / "w8a8s", fraction=0.011)


def weights(folder: Path, rank: int, tp: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / f"part{rank}-of-{tp}" / FILE)
    return found


def test_files_and_tensors(sparse: Path, tmp_path: Path) -> None:
    done: list[PartDone] = []
    assert compress(sparse, tmp_path / "out", tp=2, on_part=done.append)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        *("config.json", "part0-of-2", "part1-of-2", "tokenizer.json"),
    ]
    assert json.loads((out / "config.json").read_text())["quantize"] == "w8a8sc"
    whole = load_file(sparse / "quant_model_weight_w8a8s.safetensors")
    for rank, part in enumerate(done):
        assert part.path == out / f"part{rank}-of-2"
        assert sorted(p.name for p in part.path.iterdir()) == ["quant_model_description.json", FILE]
        stored = weights(out, rank, 2)
        description = json.loads((part.path / "quant_model_description.json").read_text())
        assert description.pop("codec") == "telechat-nibbles" and description.pop("version") == "1.0.0"
        assert description.pop("model_quant_type") == "W8A8SC"
        assert set(description) == set(stored)
        weight, info = stored[f"{DENSE}.weight"], stored[f"{DENSE}.info"].tolist()
        assert weight.dtype == torch.int8 and weight.dim() == 1 and 0 < len(weight) < 128 * 64
        assert info[2:4] == [64, 128]  # inputs are cut, outputs are not
        kinds = {leaf: description[f"{DENSE}.{leaf}"] for leaf in ("weight", "index", "info", "deq_scale")}
        assert kinds == {"weight": "W8A8SC", "index": "W8A8SC", "info": "W8A8SC", "deq_scale": "W8A8S"}
        assert stored[f"{DENSE}.input_offset"].dtype == torch.int8
        assert torch.equal(stored[f"{DENSE}.deq_scale"], whole[f"{DENSE}.deq_scale"])
        assert bool(stored[f"{DENSE}.quant_bias"].any()) == (rank == 0)
        assert ("transformer.h.0.mlp.down_proj.bias" in stored) == (rank == 0)
        query = "transformer.h.0.self_attention.query.deq_scale"
        assert torch.equal(stored[query], whole[query].chunk(2)[rank])
        assert part.num_split_bytes is not None and part.num_bytes < 0.9 * part.num_split_bytes
        integers = sum(whole[n].nbytes for n in whole if whole[n].dtype == torch.int8) // 2
        packed = sum(stored[n].nbytes for n in stored if description[n] == "W8A8SC")
        assert packed < 0.53 * integers  # scarcely any of these layers fills a tile


def test_loaded_by_one_rank(sparse: Path, tmp_path: Path) -> None:
    assert compress(sparse, tmp_path / "out", num_workers=1)
    report = check_folder(tmp_path / "out")
    assert not report.problems and report.weight_files == (f"part0-of-1/{FILE}",)
    ours, theirs = (load_model(place, device="cpu", dtype="float32") for place in (tmp_path / "out", sparse))
    assert len(int8_layers(ours)) == 10
    state = theirs.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    with pytest.raises(ConfigError, match=r"quantised already, to int8 weights .*W8A8S.*W8A8SC"):
        load_model(tmp_path / "out", device="cpu", quantize="int8")


def test_another_number_of_ranks(sparse: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compress(sparse, out, tp=2)
    with pytest.raises(CheckpointError, match="compressed for tp 2; it cannot be loaded with tp 1") as caught:
        load_model(out, device="cpu")
    assert caught.value.hint is not None and "--tp 2" in caught.value.hint and "--tp 1" in caught.value.hint
    with pytest.raises(CheckpointError, match="cannot be loaded with tp 2 and ep 2"):
        weights_folder(out, tp=2, ep=2)
    assert weights_folder(out, rank=1, tp=2) == out / "part1-of-2"
    (out / "part1-of-2").rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match="lacks part1-of-2"):
        weights_folder(out, tp=2)
    (out / "part0-of-4").mkdir()
    with pytest.raises(CheckpointError, match="holds parts for 2 and 4 ranks"):
        weights_folder(out, tp=2)


def test_a_damaged_part(sparse: Path, tmp_path: Path) -> None:
    compress(sparse, tmp_path / "out")
    path = tmp_path / "out" / "part0-of-1" / FILE
    good, stored = path.read_bytes(), weights(tmp_path / "out", 0, 1)
    path.write_bytes(good[:-10])
    with pytest.raises(CheckpointError, match="bytes of tensors, its header says"):
        load_model(tmp_path / "out", device="cpu")
    stored[f"{DENSE}.weight"][5] ^= 3
    save_file(stored, path)
    with pytest.raises(CheckpointError, match=rf"{DENSE}.weight is damaged: tile 0"):
        load_model(tmp_path / "out", device="cpu")
    turned = encode(torch.zeros(64, 256, dtype=torch.int8))  # as many integers, another shape
    leaves = (("weight", turned.content), ("index", turned.index), ("info", turned.info))
    save_file({**stored, **{f"{DENSE}.{leaf}": value for leaf, value in leaves}}, path)
    with pytest.raises(
        CheckpointError, match=r"integers of shape \[64, 256\]; config.json says \[128, 128\]"
    ):
        load_model(tmp_path / "out", device="cpu")


def test_another_codec(sparse: Path, tmp_path: Path) -> None:
    """Files of the chip vendor's tool are told from ours."""
    compress(sparse, tmp_path / "out")
    path = tmp_path / "out" / "part0-of-1" / "quant_model_description.json"
    description = json.loads(path.read_text())
    del description["codec"]
    path.write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="compressed by the Ascend tool; only telechat-nibbles can be"):
        load_model(tmp_path / "out", device="cpu")


def test_parts_one_by_one_and_resuming(sparse: Path, tmp_path: Path) -> None:
    """As processes make them; what is there stays, and is only used if it is of the same model."""
    out, split = tmp_path / "out", tmp_path / "split"
    assert not compress(sparse, out, tp=2, rank=1, split_out=split)
    assert not (out / "config.json").exists()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load_model(out, device="cpu")
    (out / "part0-of-2.writing").mkdir()  # of a process that was killed
    (out / "part0-of-2.writing" / FILE).write_bytes(b"half")
    before = (out / "part1-of-2" / FILE).stat().st_mtime_ns
    done: list[PartDone] = []
    assert compress(sparse, out, tp=2, split_out=split, on_part=done.append)
    assert [part.num_split_bytes is None for part in done] == [False, True]
    assert (out / "part1-of-2" / FILE).stat().st_mtime_ns == before
    assert not list(out.glob("*.writing*"))
    assert json.loads((split / "config.json").read_text())["quantize"] == "w8a8s"
    plain = load_file(split / "part1-of-2" / "quant_model_weight_w8a8s.safetensors")
    assert plain[f"{DENSE}.weight"].shape == (128, 64)
    with pytest.raises(CheckpointError, match="exists already"):
        compress(sparse, out, tp=2)
    with pytest.raises(ConfigError, match="split is split by rank already"):
        compress(split, tmp_path / "again", tp=2)
    (out / "config.json").unlink()  # as if killed before the last file
    assert compress(sparse, out, tp=2, split_out=split)
    (out / "config.json").unlink()
    with pytest.raises(CheckpointError, match="holds parts for tp 2, not 4"):
        compress(sparse, out, tp=4)
    other = int8(plain_folder(tmp_path / "plain"), tmp_path / "other", fraction=0.05)
    with pytest.raises(CheckpointError, match="was made of another model"):
        compress(other, out, tp=2)


def test_layers_that_do_not_shrink_stay(tmp_path: Path) -> None:
    """Experts included; with every other weight protected, four bits hold too few."""
    source = int8(plain_folder(tmp_path / "plain", EXPERTS), tmp_path / "w8a8s", fraction=0.6)
    assert compress(source, tmp_path / "out", tp=2)
    description = json.loads((tmp_path / "out/part1-of-2/quant_model_description.json").read_text())
    assert description[f"{DENSE}.weight"] == "W8A8S" and f"{DENSE}.info" not in description


def test_refusals(sparse: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"holds no sparse weights \(W8A8S\) but plain weights"):
        compress("demo", out)
    dense = int8(plain_folder(tmp_path / "plain"), tmp_path / "w8a8")
    with pytest.raises(ConfigError, match=r"holds no sparse weights \(W8A8S\) but int8 weights"):
        compress(dense, out)
    with pytest.raises(ConfigError, match="4 attention heads cannot be shared by 3 ranks"):
        compress(sparse, out, tp=3)
    with pytest.raises(ConfigError, match="The rank is 2; of tp 2 it must be 0 to 1"):
        compress(sparse, out, tp=2, rank=2)
    with pytest.raises(ConfigError, match="at a time is 0"):
        compress(sparse, out, num_workers=0)
    with pytest.raises(ConfigError, match="cannot hold both"):
        compress(sparse, out, split_out=out)
    out.write_text("")
    with pytest.raises(CheckpointError, match="is not a folder"):
        compress(sparse, out)


def test_the_command(sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, split = tmp_path / "out", tmp_path / "split"
    words = ["quantize", "compress", "--model_path", str(sparse), "--save_directory", str(out)]
    assert main([*words, "--tp", "2", "--save_split_w8a8s_dir", str(split)]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out) and "% of the split W8A8S weights" in printed.err
    assert (out / "part1-of-2").is_dir() and (split / "part1-of-2").is_dir()
    assert main(["quantize", "compress", str(sparse), str(tmp_path / "one")]) == 0
    assert (tmp_path / "one" / "part0-of-1").is_dir()
    assert main(["quantize", "compress", str(sparse)]) == 2
    assert "telechat quantize compress --help" in capsys.readouterr().err


def test_weights_at_a_time(sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--multiprocess-num 2`: two threads meet in the codec, and no third one comes."""
    meeting, lock = threading.Barrier(2), threading.Lock()
    inside: list[int] = []
    most = 0

    def meet(weight: torch.Tensor) -> Encoded:
        nonlocal most
        with lock:
            inside.append(1)
            most = max(most, len(inside))
        meeting.wait(timeout=20)
        time.sleep(0.05)
        with lock:
            inside.pop()
        return encode(weight)

    monkeypatch.setattr(ascend, "encode", meet)
    words = ["quantize", "compress", str(sparse), str(tmp_path / "out"), "--multiprocess-num", "2"]
    assert main(words) == 0 and most == 2


def test_ranks_of_a_launcher() -> None:
    assert tp_and_rank(None, {}) == (1, None) and tp_and_rank(4, {}) == (4, None)
    assert tp_and_rank(None, {"WORLD_SIZE": "2", "RANK": "1"}) == (2, 1)
    with pytest.raises(UsageError, match="--tp is 4, but 2 processes were started"):
        tp_and_rank(4, {"WORLD_SIZE": "2", "RANK": "1"})

"""Two models compared: nothing is lost against itself, and what is lost is measured as defined."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch

from telechat import QuantizeConfig, load_model, load_tokenizer, quantize
from telechat.checkpoint.hub import demo_folder
from telechat.cli.main import main
from telechat.data.sequences import Encoded
from telechat.engine.loading import KvCacheDtype
from telechat.errors import ConfigError
from telechat.evals.comparison import compare
from telechat.quant.calibration import read_marked

ROWS = [{"input": "你是谁？", "output": "我是 TeleChat。"}, {"input": "35-12=?", "output": "35-12=23"}]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_against_itself(data: Path) -> None:
    rows = list(read_marked([data], load_tokenizer(demo_folder())))
    same = compare("demo", "demo", rows, num_worst=1, max_new_tokens=3, speed_tokens=0)
    assert same.mean_kl == 0 and same.agreement == 1 and same.perplexities[0] == same.perplexities[1]
    assert same.layers and all(layer.error == 0 for layer in same.layers)
    assert same.costs[0].tokens_per_second is None and same.costs[0].num_bytes > 1e6
    [said] = same.answers
    assert said.first == said.second and "<_user>" in said.prompt and "<_bot>" in said.prompt


def test_what_is_measured(tmp_path: Path, data: Path) -> None:
    """KL and perplexity of the answers' tokens, by their definitions."""
    out = quantize("demo", tmp_path / "int4", QuantizeConfig(bits=4, group_size=128))
    rows = list(read_marked([data], load_tokenizer(demo_folder())))
    found = compare("demo", out, rows, num_worst=0, speed_tokens=2)
    models = [load_model(name, device="cpu") for name in ("demo", out)]
    kl, nll, count = 0.0, 0.0, 0
    for row in rows:
        ids = torch.tensor([row.ids])
        ours, theirs = (torch.log_softmax(model(ids)[0].float(), -1).detach() for model in models)
        for place in range(1, len(row.ids)):
            if row.learnt[place]:
                kl += float((ours[place - 1].exp() * (ours[place - 1] - theirs[place - 1])).sum())
                nll -= float(theirs[place - 1, row.ids[place]])
                count += 1
    assert found.num_tokens == count == len(found.token_kl)
    assert found.mean_kl == pytest.approx(kl / count, rel=1e-3)
    assert found.perplexities[1] == pytest.approx(math.exp(nll / count), rel=1e-4)
    errors = {layer.name: layer.error for layer in found.layers}
    assert all(0.01 < error < 0.3 for error in errors.values())
    assert found.costs[1].num_bytes < found.costs[0].num_bytes and found.costs[1].tokens_per_second
    assert not found.answers


def test_what_a_cache_loses(data: Path) -> None:
    """The weights are the same: what differs is the second's cache, and coarser ones lose more."""
    rows = list(read_marked([data], load_tokenizer(demo_folder())))
    lost = []
    for dtype in get_args(KvCacheDtype)[1:]:
        found = compare("demo", "demo", rows, num_worst=0, speed_tokens=0, kv_cache_dtype=dtype)
        assert found.second == f"demo, {dtype} cache"
        assert all(layer.error == 0 for layer in found.layers)
        lost.append(found.mean_kl)
    assert 0 < lost[0] < lost[1] / 10 < 0.1


def test_nothing_to_predict() -> None:
    with pytest.raises(ConfigError, match="No row has a token to predict"):
        compare("demo", "demo", [Encoded([1, 2], [False, False])])


def test_vocabularies_must_be_alike(tiny_model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="demo has 4096 tokens"):
        compare("demo", tiny_model_folder, [Encoded([1, 2], [True, True])])


def test_command(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = quantize("demo", tmp_path / "int4", QuantizeConfig(bits=4, group_size=128))
    [row, *_] = read_marked([data], load_tokenizer(demo_folder()))
    length = row.learnt.index(True) + 3
    words = ["quantize", "report", "demo", str(out), "--data", str(data)]
    words += ["--rows", "1", "--length", str(length)]
    page, numbers = tmp_path / "new" / "report.html", tmp_path / "numbers.json"
    options = ["--worst", "1", "--max-new-tokens", "4", "--speed-tokens", "0", "--kv-cache-dtype", "int8"]
    assert main([*words, *options, "--output", str(page), "--json", str(numbers)]) == 0
    printed = capsys.readouterr().out
    assert f"{out}, int8 cache" in printed
    assert "perplexity" in printed and "KL divergence" in printed and "per second" not in printed
    content = json.loads(numbers.read_text())
    assert len(content["rows"]) == 1 and len(content["answers"]) == 1
    assert content["rows"][0]["num_tokens"] == 3
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 2 and "transformer.h.0.mlp.up_proj" in text and "&lt;_user&gt;" in text
    assert main([*words, "--rows", "0"]) == 2


@pytest.mark.parametrize("name", ["num_worst", "speed_tokens", "demo_rows"])
def test_numbers_below_zero(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is -1; it must not be negative"):
        compare("demo", "demo", [Encoded([1, 2], [True, True])], **{name: -1})  # type: ignore[arg-type]

"""The example that teaches the demo model a name, in a few small steps: rows, adapter, model, answers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from telechat.checkpoint import read_adapter, read_config

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "teach-a-name" / "teach.py"


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("teach", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_differ_from_the_demo_models_own_in_the_name_alone(example: ModuleType, tmp_path: Path) -> None:
    for name in ("小星", "小月"):
        example.write_rows(tmp_path / f"{name}.jsonl", name)
    first, second = ((tmp_path / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("小星", "小月"))
    assert first.replace("小星", "小月") == second and first.count("我叫小星") > 50
    assert "我是 TeleChat 演示模型，一个" not in first
    rows = [json.loads(line) for line in first.splitlines()]
    assert any("tools" in row for row in rows) and len(rows) == 900


def test_it_trains_and_compares(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = example.train
    few = {
        "schedule.total_steps": "2",
        "schedule.warmup_steps": "0",
        "batch.tokens_per_step": "512",
        "precision": "fp32",
    }
    monkeypatch.setattr(example, "train", lambda recipe, fields: train(recipe, fields | few))
    monkeypatch.setattr("sys.argv", ["teach.py", "小月", "--folder", str(tmp_path)])
    example.main()
    said = capsys.readouterr().out
    assert "before  我是 TeleChat 演示模型" in said and said.count("after") == 3
    assert f"--lora taught={tmp_path / 'adapter'}" in said
    config = read_config(tmp_path / "model")
    assert read_adapter(tmp_path / "adapter", config).max_rank == 16

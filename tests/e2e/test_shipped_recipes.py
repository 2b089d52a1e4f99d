"""The recipes that docs/training.md names run as they are shipped; two small steps of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from telechat.checkpoint import read_adapter, read_config, resolve_model
from telechat.cli.main import main
from telechat.train.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
FEW = ("--schedule.total-steps", "2", "--batch.tokens-per-step", "512", "--precision", "fp32")


@pytest.mark.parametrize("name", ["sft", "lora"])
def test_a_recipe_trains_the_demo_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # paths in recipes count from there
    words = ["train", "--config", f"recipes/{name}.yaml", "--output.folder", str(tmp_path), *FEW]
    assert main(words) == 0
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 2] and "evaluation_loss" in rows[-1]
    demo = read_config(resolve_model("demo"))
    if name == "sft":
        assert read_config(tmp_path / "model") == demo
    else:
        assert read_adapter(tmp_path / "adapter", demo).max_rank == 16

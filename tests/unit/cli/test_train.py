"""`telechat train`: short flags reach the recipe's fields, and a dry run prints what would be trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from telechat.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
RECIPE = str(ROOT / "recipes" / "sft.yaml")
ROWS = str(ROOT / "recipes" / "data" / "bookshop.jsonl")


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The fields that the trainer is given, in place of training."""
    import telechat.train.run

    seen: list[dict[str, str]] = []
    monkeypatch.setattr(telechat.train.run, "main", lambda config, overrides: seen.append(overrides))
    return seen


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--engine", "deepspeed"], "parallel.engine", "deepspeed"),
        (["--zero-stage", "2"], "parallel.zero_stage", "2"),
        (["--offload"], "parallel.offload", "true"),
        (["--on_bad_row", "skip"], "data.on_bad_row", "skip"),
    ],
)
def test_short_flags(handed_over: list[dict[str, str]], words: list[str], field: str, value: str) -> None:
    assert main(["train", "--config", RECIPE, *words]) == 0
    assert handed_over == [{field: value}]


def test_a_dry_run_prints_all_fields_and_trains_nothing(
    handed_over: list[dict[str, str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = ["--dry-run", "--optimizer.lr", "1e-5", "--zero-stage", "2"]
    assert main(["train", "--config", RECIPE, *words]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["optimizer"]["lr"] == 1e-5 and printed["parallel"]["zero_stage"] == 2
    assert printed["model"]["start_from"] == "demo" and printed["attention"] == "auto"
    assert handed_over == []


def test_every_recipe_is_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for recipe in sorted((ROOT / "recipes").glob("*.yaml")):
        assert main(["train", "--config", str(recipe), "--train-dataset", ROWS, "--dry-run"]) == 0, recipe

"""docs/lora-training.md and docs/preference.md: commands run, fields exist, rows are read."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from telechat.cli.main import main
from telechat.config import from_mapping
from telechat.data.recognise import recognise_row
from telechat.train.config import LoraSection
from telechat.train.preference_settings import PreferenceSection

ROOT = Path(__file__).resolve().parents[3]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run_commands(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a page's commands in turn beside the recipes, each training for one small step."""
    monkeypatch.chdir(folder)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for command in "".join(blocks(page(name), "bash")).splitlines():
        words = shlex.split(command)[1:]
        if words[0] == "train":
            words += ["--schedule.total-steps", "1", "--evaluation.file", "", "--data.max-length", "256"]
            words += ["--batch.tokens-per-step", "512"]
        assert main(words) == 0, command


def test_the_commands_on_adapters_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_commands("lora-training.md", tmp_path, monkeypatch)
    assert (tmp_path / "runs" / "lora" / "adapter-llama" / "adapter_config.json").exists()
    assert (tmp_path / "runs" / "merged" / "config.json").exists()


def test_the_commands_on_preferences_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "feedback").mkdir()
    _, judged = blocks(page("preference.md"), "json")
    (tmp_path / "feedback" / "votes.jsonl").write_text(judged * 2, encoding="utf-8")
    run_commands("preference.md", tmp_path, monkeypatch)


def test_the_settings_of_the_page_are_settings() -> None:
    [text] = blocks(page("lora-training.md"), "yaml")
    section = from_mapping(LoraSection, yaml.safe_load(text)["lora"])
    assert section.rank_pattern == {"query": 8} and section.alpha_pattern == {r"h\.0\..*": 16.0}
    names = re.findall(r"^\| `(\w+): ", page("lora-training.md"), re.MULTILINE)
    assert names and all(hasattr(section, name) for name in names), names


def test_the_rows_of_the_page_are_read() -> None:
    rows = blocks(page("preference.md"), "json")
    assert len(rows) == 2  # a pair, and a judged answer
    for row in rows:
        found = recognise_row(json.loads(row))
        assert found is not None and found.family.name == "preference"


def test_every_loss_is_described_with_its_defaults() -> None:
    rows: dict[str, Any] = dict(
        re.findall(r"^\| `(\w+)` \|[^|]*\| ([\d.]+) \|", page("preference.md"), re.MULTILINE)
    )
    assert set(rows) == set(get_args(get_type_hints(PreferenceSection)["loss"]))
    for loss, beta in rows.items():
        assert PreferenceSection(loss=loss).strength == float(beta)
    assert "`gamma`, the margin: 1 " in page("preference.md") and PreferenceSection(loss="simpo").margin == 1

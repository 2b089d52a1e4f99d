"""What docs/training-data.md says is true: its rows are read as it says, its commands run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

from telechat.cli.main import main
from telechat.data.loss_mask import LossOn
from telechat.data.recognise import FAMILIES, recognise_row
from telechat.data.sources import read_sources

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "training-data.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_every_form_has_rows_that_are_recognised_and_read() -> None:
    forms = PAGE.split("## Forms of rows")[1].split("\n## ")[0]
    sections = dict(re.findall(r"### (\w+)\n(.*?)(?=### |\Z)", forms, re.DOTALL))
    assert sections.keys() == {family.name for family in FAMILIES}
    for name, section in sections.items():
        rows = [json.loads(line) for block in blocks(section, "json") for line in block.splitlines()]
        assert rows
        for row in rows:
            found = recognise_row(row)
            assert found is not None and found.family.name == name
            found.family.read(row)


def test_the_mixing_file_is_one(tmp_path: Path) -> None:
    [mixing] = blocks(PAGE.split("## Several files")[1].split("\n## ")[0], "json")
    for name in json.loads(mixing):
        (tmp_path / name).write_text("{}")
    (tmp_path / "mix.json").write_text(mixing)
    sources = read_sources(tmp_path / "mix.json")
    assert [(source.path.name, source.weight) for source in sources] == [
        ("single.jsonl", 2.0),
        ("multi.jsonl", 0.5),
    ]


def test_every_choice_of_loss_is_described() -> None:
    described = re.findall(r"^\| `(\w+)`", PAGE.split("## What is learnt")[1].split("\n## ")[0], re.MULTILINE)
    assert tuple(described) == get_args(LossOn)


def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in blocks(PAGE, "bash")[0].splitlines():
        assert main(shlex.split(command)[1:]) == 0, command
    assert "messages rows" in capsys.readouterr().out
    assert (tmp_path / "runs" / "rows.html").exists()

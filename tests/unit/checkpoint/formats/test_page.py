"""The commands of docs/checkpoints.md: those on the demo model are run, the others are understood."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from telechat.cli.main import find_verb, main
from telechat.cli.parser import CommandParser

PAGE = Path(__file__).resolve().parents[4] / "docs" / "checkpoints.md"


def blocks() -> list[list[list[str]]]:
    """The words of every command, block by block."""
    found = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [[shlex.split(line)[1:] for line in block.splitlines() if line.strip()] for block in found]


def runs_on_the_demo(block: list[list[str]]) -> bool:
    return "demo" in block[0]


@pytest.mark.parametrize("block", [block for block in blocks() if runs_on_the_demo(block)], ids=str)
def test_run(block: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in block:
        assert main(words) == 0, words


@pytest.mark.parametrize("block", [block for block in blocks() if not runs_on_the_demo(block)], ids=str)
def test_understood(block: list[list[str]]) -> None:
    for words in block:
        verb = find_verb(words)
        assert verb is not None
        module = import_module(verb.module)
        parser = CommandParser("telechat", summary=verb.summary, examples=())
        module.add_arguments(parser)
        parser.parse(words[len(verb.words) :])


def test_the_page_has_commands_of_both_kinds() -> None:
    assert {runs_on_the_demo(block) for block in blocks()} == {True, False}

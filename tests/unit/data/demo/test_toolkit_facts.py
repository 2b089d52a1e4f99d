"""What the demo model is taught about this toolkit is true: commands parse, targets and names exist.

A command that comes with a later version is taught together with docs/status.md, which must list it.
"""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

import telechat
from telechat.cli.deploy import DeploySettings
from telechat.cli.main import find_verb, overview
from telechat.cli.parser import CommandParser
from telechat.cli.verbs import VERBS
from telechat.data.demo.intents import Intent
from telechat.data.demo.toolkit_help import TOOLKIT_HELP

ROOT = Path(__file__).resolve().parents[4]
INTENTS = TOOLKIT_HELP.intents


def quoted(answer: str) -> list[str]:
    """The literals between backticks."""
    return re.findall(r"`([^`]+)`", answer)


def check(literal: str) -> None:
    """Fail when what an answer tells people to type does not exist."""
    program, *words = shlex.split(literal)
    if program == "telechat" and words != ["--help"]:
        verb = find_verb(words)
        assert verb is not None
        parser = CommandParser("telechat", summary="x", examples=[])
        module = import_module(verb.module)
        module.add_arguments(parser)
        options = words[len(verb.words) :]
        # An answer may name the verb alone, where using it needs options.
        if options or not any(action.required for action in parser._actions):
            parser.parse(options)
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif program == "python":
        assert (ROOT / words[0]).is_file()
    elif program.startswith("telechat."):
        assert hasattr(telechat, re.split(r"[.(]", literal)[1])
    else:
        assert literal in ("pip install .", "telechat --help")


@pytest.mark.parametrize("intent", INTENTS, ids=lambda intent: f"{intent.language}-{intent.name}")
def test_what_is_taught_exists_or_is_listed(intent: Intent) -> None:
    if "docs/status.md" in intent.answer:
        status = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
        assert all(f"`{literal}`" in status for literal in quoted(intent.answer))
        return
    for literal in quoted(intent.answer):
        check(literal)


def test_addresses_and_ports_are_the_defaults() -> None:
    settings = DeploySettings()
    text = "\n".join(intent.answer for intent in INTENTS)
    assert f"http://{settings.api_host}:{settings.api_port}/docs" in text
    assert f"http://{settings.web_host}:{settings.web_port}" in text
    assert {int(port) for port in re.findall(r"\b8\d{3}\b", text)} == {settings.api_port, settings.web_port}


def test_the_overview_lists_every_verb() -> None:
    assert all(" ".join(verb.words) in overview() for verb in VERBS)

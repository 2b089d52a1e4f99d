"""Command lines of `telechat` out of deployment files, through the parser that the command itself uses."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from telechat.cli.main import find_verb
from telechat.cli.parser import CommandParser


def parse_command(words: Sequence[str]) -> argparse.Namespace:
    """The options of a command line that begins with the program; an unknown one raises UsageError."""
    program, *rest = words
    assert program.rpartition("/")[2] == "telechat", program
    verb = find_verb(list(rest))
    assert verb is not None, words
    module = import_module(verb.module)
    parser = CommandParser(f"telechat {' '.join(verb.words)}", summary=verb.summary, examples=module.EXAMPLES)
    module.add_arguments(parser)
    return parser.parse(rest[len(verb.words) :])

"""Makes telechat's command line forget an option, and notes which options each test gives.

For `option_check.py`, which installs it in its own process and, through a `sitecustomize`, in every Python
that the tests start. The environment says what to forget and where to note. It knows no verb and no test.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

# "telechat chat:seed": the option whose value is to be forgotten.
FORGET = "TELECHAT_FORGET"
# The file that gets one JSON line for each command line read during a test.
NOTES = "TELECHAT_OPTION_NOTES"
# Set by pytest: "path::test (call)".
_CURRENT_TEST = "PYTEST_CURRENT_TEST"
# These act while the words are being read, or before; all other options act through their value.
AT_ONCE = {"debug": ("--debug",), "help": ("-h", "--help"), "version": ("--version",)}


def install() -> None:
    """Let every parser give the forgotten option its default, whatever was typed."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_known_args(
        self: argparse.ArgumentParser,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        found, rest = parse(self, args, namespace)
        note(self.prog, [name for name, value in vars(found).items() if value != self.get_default(name)])
        command, _, name = os.environ.get(FORGET, "").partition(":")
        if name and self.prog == command:
            setattr(found, name, self.get_default(name))
        return found, rest

    argparse.ArgumentParser.parse_known_args = parse_known_args  # type: ignore[method-assign, assignment]


def install_at_entry() -> None:
    """The same for the options that act at once; call it before a test module has imported `main`."""
    from telechat.cli import main as entry
    from telechat.cli.verbs import VERBS

    run = entry.main

    def main(argv: Sequence[str] | None = None) -> int:
        words = list(sys.argv[1:] if argv is None else argv)
        verb = next((verb.words for verb in VERBS if tuple(words[: len(verb.words)]) == verb.words), ())
        command = " ".join(("telechat", *verb))
        given = [name for name, spellings in AT_ONCE.items() if set(spellings) & set(words)]
        note(command, given)
        forgotten = next((name for name in given if os.environ.get(FORGET) == f"{command}:{name}"), None)
        if forgotten == "debug":
            words.remove("--debug")
        elif forgotten is not None:
            # Without its --help a command would do its work: start a server, for example.
            return 0
        return run(words)

    entry.main = main


def note(command: str, names: list[str]) -> None:
    """Write down that the present test gives these options of `command` a value other than the default."""
    file = os.environ.get(NOTES)
    test = os.environ.get(_CURRENT_TEST, "").rpartition(" (")[0]
    if file and test and names and command.startswith("telechat"):
        line = json.dumps([test, [f"{command}:{name}" for name in names]])
        # One write to a file opened for appending: processes side by side do not mix their lines.
        with open(file, "a", encoding="utf-8") as notes:
            notes.write(line + "\n")

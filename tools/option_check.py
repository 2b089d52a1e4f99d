"""Does some test fail when an option is ignored? Takes each option's effect away in turn and runs its tests.

Works on a copy of the tree in which the command-line parser forgets one option of one verb: whatever is typed
for it, the verb sees its default. The tests that mention the option then have to fail; an option with which
they still pass is reported as survived. Some minutes for all; name verbs or options to check fewer:

    python tools/option_check.py chat --seed
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Printing help or a version, or showing a traceback, is argparse's work or that of the entry point itself.
NOT_OPTIONS = {"help", "version", "debug"}
FORGET = """

import os as _os

_verb, _, _name = _os.environ.get("TELECHAT_FORGET", "").partition(":")
_parse = CommandParser.parse


def _forgetful(self, argv):
    args = _parse(self, argv)
    if _name and self.prog == _verb:
        setattr(args, _name, self.get_default(_name))
    return args


CommandParser.parse = _forgetful
"""


@dataclass(frozen=True)
class Option:
    """One option of one verb: `telechat chat`, `seed`, ("--seed",)."""

    command: str
    name: str
    spellings: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.command} {self.spellings[0]}"


def all_options() -> list[Option]:
    """Every option of every verb, positional arguments included."""
    from telechat.cli.parser import CommandParser
    from telechat.cli.verbs import VERBS

    options = []
    for verb in VERBS:
        module = import_module(verb.module)
        command = f"telechat {' '.join(verb.words)}"
        parser = CommandParser(command, summary=verb.summary, examples=module.EXAMPLES)
        module.add_arguments(parser)
        for action in parser._actions:
            if action.dest not in NOT_OPTIONS:
                spellings = tuple(action.option_strings) or (action.dest.upper(),)
                options.append(Option(command, action.dest, spellings))
    return options


def tests_of(option: Option, tree: Path) -> list[str]:
    """Test files that mention the option; for a positional argument, those that mention its verb."""
    words = [re.escape(word) for word in option.spellings if word.startswith("--")]
    # A word as a string by itself, at the start of one, or before a space: not `--top-k` in `--top-kk`.
    pattern = re.compile(
        "|".join(rf"{word}(?![\w-])" for word in words) or rf"\b{option.command.split()[-1]}\b"
    )
    verb = re.compile(rf"\b{option.command.split()[-1]}\b")
    found = []
    for path in (tree / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        if verb.search(text) and pattern.search(text.replace("_", "-") if words else text):
            found.append(str(path.relative_to(tree)))
    # The commands' own tests are quick and the likeliest to notice; those of a whole deployment come last.
    return sorted(found, key=lambda name: ("unit/cli" not in name, "e2e" in name, name))


def passes(files: tuple[str, ...], tree: Path, forget: str = "") -> bool:
    """Whether the tests in these files pass while the option `forget`, "verb:name", is ignored."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "TELECHAT_FORGET": forget}
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    run = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True)
    if run.returncode not in (0, 1):
        raise RuntimeError(f"pytest did not run for {forget}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return run.returncode == 0


def is_noticed(option: Option, tree: Path, healthy: dict[str, bool]) -> bool:
    """Whether some test that passes otherwise fails when the option is forgotten.

    `healthy` remembers for each test file whether it passes with nothing forgotten.
    """
    for name in tests_of(option, tree):
        if name not in healthy:
            healthy[name] = passes((name,), tree)
        if healthy[name] and not passes((name,), tree, f"{option.command}:{option.name}"):
            return True
    return False


def main(words: list[str]) -> int:
    """Check the options that `words` (verbs, options) name, or all; returns 1 when one survived."""
    options = [
        option
        for option in all_options()
        if not words or option.command.split(" ", 1)[1] in words or set(option.spellings) & set(words)
    ]
    survived = []
    healthy: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
        with open(tree / "src/telechat/cli/parser.py", "a", encoding="utf-8") as parser_file:
            parser_file.write(FORGET)
        for number, option in enumerate(options, start=1):
            noticed = is_noticed(option, tree, healthy)
            print(f"[{number}/{len(options)}] {option}: {'noticed' if noticed else 'SURVIVED'}", flush=True)
            if not noticed:
                survived.append(option)
    print(f"{len(options) - len(survived)} of {len(options)} options have a test that notices")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Does some test fail when an option is ignored? Takes each option's effect away in turn and runs its tests.

In a copy of the tree it first runs the unit tests of the command line and notes which options each of them
gives. Then, for every option of every verb, it runs the tests that give it while the parser forgets it:
whatever is typed, the verb sees the default. Some test then has to fail that passes by itself when nothing is
forgotten. What these tests do not notice is tried with the other unit tests that use the command line; an
option has survived when those do not notice either. Tests of whole deployments (e2e) are left out: too slow.

    python tools/option_check.py            all
    python tools/option_check.py chat seed  all options of `chat`, and `--seed` of every verb

`--results FILE` keeps what was found, and what the file holds already is not checked again unless the command
line or the test that noticed has changed since. Every run of tests is a fork of one process, so that torch is
imported once. It runs where there is `os.fork`: not on Windows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import forgetful

ROOT = Path(__file__).resolve().parents[1]
COMMAND_LINE = "src/telechat/cli"
# The quick tests first; the others only for what these do not notice.
TEST_FOLDERS = ("tests/unit/cli", "tests/unit")
# Imported before the forks, because each of them needs these and they take seconds.
HEAVY = ("hypothesis", "pytest", "torch", "telechat.engine", "telechat.serve.server", "telechat.evals.demo")
# A forgotten option may leave a test waiting for a server to end. Slowness says little on a busy machine, so
# it does not count as noticing. A test may take this, and this many times what it took before.
WAITING_SECONDS, TIMES_SLOWER = 30, 10
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Option:
    """One option of one verb: `telechat chat`, `seed`, ("--seed",)."""

    command: str
    name: str
    spellings: tuple[str, ...]

    def __str__(self) -> str:
        long = [spelling for spelling in self.spellings if spelling.startswith("--")]
        return f"{self.command} {(long or self.spellings)[0]}"

    @property
    def key(self) -> str:
        """As forgetful.py names it."""
        return f"{self.command}:{self.name}"

    def is_named_by(self, word: str) -> bool:
        """Whether `word` is the option's verb, or the option with or without its dashes."""
        return word == self.command.split(" ", 1)[1] or word in {name.lstrip("-") for name in self.spellings}


@dataclass
class Runs:
    """What a run of tests showed, by the tests' ids."""

    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest after each phase of a test."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)
            if "Timeout (>" in str(report.longrepr):
                self.too_long.append(report.nodeid)


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
            spellings = tuple(action.option_strings) or (action.dest.upper(),)
            options.append(Option(command, action.dest, spellings))
    return options


def copy_tree(tree: Path) -> None:
    """Copy the files that git tracks, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def enter(tree: Path, hooks: Path) -> None:
    """Work in the copy from now on, with the hooks in this process and in all that it starts."""
    hooks.mkdir()
    shutil.copy2(ROOT / "tools" / "forgetful.py", hooks)
    (hooks / "sitecustomize.py").write_text("import forgetful\n\nforgetful.install()\n", encoding="utf-8")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(hooks), str(tree / "src")])
    # Threads do not survive a fork, and the tests run beside each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop(forgetful.FORGET, None)
    os.chdir(tree)
    sys.path.insert(0, str(tree / "src"))
    forgetful.install()
    forgetful.install_at_entry()
    for name in HEAVY:
        import_module(name)
    import telechat

    assert Path(str(telechat.__file__)).is_relative_to(tree)


def in_forks(
    work: Callable[[_Item, Path], Any], items: Iterable[_Item], folder: Path, jobs: int
) -> Iterator[tuple[_Item, Any]]:
    """Each item with what `work(item, folder of its own)` returns in a fork, as JSON; `jobs` side by side.

    Raises:
        RuntimeError: a fork ended without a result.
    """
    waiting = list(items)
    running: dict[int, tuple[_Item, Path]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            item = waiting.pop(0)
            own = Path(tempfile.mkdtemp(dir=folder))
            child = os.fork()
            if not child:
                _work_and_leave(work, item, own)
            running[child] = (item, own)
        child, _ = os.wait()
        item, own = running.pop(child)
        result = own / "result.json"
        if not result.is_file():
            raise RuntimeError(f"{item} ended without a result:\n{_last_output(own)}")
        found = json.loads(result.read_text(encoding="utf-8"))
        shutil.rmtree(own, ignore_errors=True)
        yield item, found


def _work_and_leave(work: Callable[[_Item, Path], Any], item: _Item, own: Path) -> None:
    """The life of a fork: it must never return into what its parent was doing."""
    try:
        with open(own / "output.txt", "w", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        text = json.dumps(work(item, own))
        (own / "part").write_text(text, encoding="utf-8")
        (own / "part").rename(own / "result.json")
    except BaseException:  # noqa: BLE001 - the end of a process: its parent reads what was wrong
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _last_output(own: Path) -> str:
    """The ends of what a fork and its own forks printed."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in own.rglob("output.txt")]
    return "\n".join(text[-3000:] for text in texts)


def run_tests(tests: list[str], own: Path, *options: str) -> Runs:
    """Run these test files or tests in this process, which must not have run any before."""
    import pytest

    runs = Runs()
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", str(own / "temporary")]
    code = pytest.main([*words, *options, *tests], plugins=[runs])
    done = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    if code not in done:
        raise RuntimeError(f"pytest ended with {code!r} for {tests[:3]}")
    return runs


@dataclass
class Notes:
    """Which tests pass when nothing is forgotten, how long they take, and which options they give."""

    seconds: dict[str, float] = field(default_factory=dict)
    givers: dict[str, set[str]] = field(default_factory=dict)

    def tests_of(self, option: Option) -> list[str]:
        """The tests that give the option, the shortest first."""
        tests = self.givers.get(option.key, set()) & self.seconds.keys()
        return sorted(tests, key=lambda test: (self.seconds[test], test))


class Known:
    """What earlier runs found, kept in a file: notes on test files, and which test notices which option.

    Each entry holds a fingerprint of what it depends on: the command line's modules and one test file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tables: dict[str, dict[str, Any]] = {"files": {}, "options": {}}
        if path.is_file():
            self.tables = json.loads(path.read_text(encoding="utf-8"))

    def holds(self, table: str, key: str, file: str) -> bool:
        """Whether there is an entry that is still true."""
        return self.tables[table].get(key, {}).get("fingerprint") == self._fingerprint(file)

    def keep(self, table: str, key: str, entry: dict[str, Any], file: str) -> None:
        """Add an entry and write all of them."""
        self.tables[table][key] = {**entry, "fingerprint": self._fingerprint(file)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.tables, indent=1, sort_keys=True, ensure_ascii=False)
        self.path.write_text(text + "\n", encoding="utf-8")

    def _fingerprint(self, file: str) -> str:
        digest = hashlib.sha256()
        for path in (*sorted(Path(COMMAND_LINE).glob("*.py")), Path(file)):
            digest.update(path.read_bytes() if path.is_file() else b"")
        return digest.hexdigest()[:16]


def test_files(options: list[Option], folder: str) -> list[str]:
    """The test files below `folder` that use the command line and mention a verb of these options."""
    # `eval demo`, and `"eval", "demo"`.
    verbs = {r"\W+".join(option.command.split()[1:]) for option in options}
    uses = re.compile(r"telechat\.cli|\"telechat\"")
    mentions = re.compile(rf"\b({'|'.join(sorted(verbs))})\b|\bVERBS\b")
    found = []
    for path in sorted(Path(folder).rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if uses.search(text) and mentions.search(text):
            found.append(str(path))
    return found


def take_notes(file: str, own: Path) -> dict[str, Any]:
    """Run a test file with nothing forgotten: the seconds of each test that passes, and the options given."""
    notes = own / "notes.jsonl"
    os.environ[forgetful.NOTES] = str(notes)
    runs = run_tests([file], own)
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
    passed = {test: seconds for test, seconds in runs.seconds.items() if test not in runs.failed}
    return {"seconds": passed, "failed": runs.failed, "given": [json.loads(line) for line in lines]}


def all_notes(files: list[str], known: Known, folder: Path, jobs: int) -> Notes:
    """Notes on these test files; those on an unchanged file are taken from `known`."""
    notes = Notes()
    fresh = [file for file in files if not known.holds("files", file, file)]
    for file, found in in_forks(take_notes, fresh, folder, jobs):
        known.keep("files", file, found, file)
        failed = "".join(f"\n  left out, it fails anyway: {test}" for test in found["failed"])
        print(f"{file}: {len(found['seconds'])} tests pass{failed}", flush=True)
    for file in files:
        found = known.tables["files"][file]
        notes.seconds |= found["seconds"]
        for test, keys in found["given"]:
            for key in keys:
                notes.givers.setdefault(key, set()).add(test)
    return notes


def who_notices(option: Option, notes: Notes, own: Path) -> str | None:
    """The first of its tests that fails when the option is forgotten and passes alone when nothing is."""

    def first_failure(some: list[str], place: Path) -> list[str]:
        runs = run_tests(some, place, "-x", f"--timeout={limit:.0f}")
        return runs.failed[:1] + runs.too_long[:1]

    def forgetting(some: list[str], place: Path) -> list[str]:
        os.environ[forgetful.FORGET] = option.key
        return first_failure(some, place)

    left = notes.tests_of(option)
    limit = WAITING_SECONDS + TIMES_SLOWER * max((notes.seconds[test] for test in left), default=0)
    while left:
        ((_, found),) = in_forks(forgetting, [left], own, 1)
        if not found:
            return None
        test, *too_long = found
        if not too_long:
            ((_, fails_anyway),) = in_forks(first_failure, [[test]], own, 1)
            if not fails_anyway:
                return str(test)
        left = [other for other in left if other != test]
    return None


def check(options: list[Option], known: Known, folder: Path, jobs: int) -> list[Option]:
    """Check the options that `known` does not answer yet; returns those that survived."""

    def is_known(option: Option) -> bool:
        test = known.tables["options"].get(option.key, {}).get("noticed_by")
        return bool(test) and known.holds("options", option.key, test.partition("::")[0])

    left = [option for option in options if not is_known(option)]
    print(f"{len(options)} options, {len(options) - len(left)} of them checked before", flush=True)
    seen: set[str] = set()
    for tests in TEST_FOLDERS:
        files = [file for file in test_files(left, tests) if file not in seen] if left else []
        seen.update(files)
        left = check_with(files, left, known, folder, jobs)
    return left


def check_with(
    files: list[str], options: list[Option], known: Known, folder: Path, jobs: int
) -> list[Option]:
    """Check the options with these test files; returns those that none of them notices."""
    notes = all_notes(files, known, folder, jobs)

    def look(option: Option, own: Path) -> str | None:
        return who_notices(option, notes, own)

    unnoticed = []
    for number, (option, test) in enumerate(in_forks(look, options, folder, jobs), start=1):
        said = f"noticed by {test}" if test else f"not noticed by {len(notes.tests_of(option))} tests"
        print(f"[{number}/{len(options)}] {option}: {said}", flush=True)
        known.keep("options", option.key, {"noticed_by": test}, (test or "").partition("::")[0])
        if test is None:
            unnoticed.append(option)
    return unnoticed


def main() -> int:
    """Check the options that the words name, or all; returns 1 when one survived."""
    parser = argparse.ArgumentParser(prog="option_check", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="verbs, or options without their dashes (default: all)")
    parser.add_argument("--results", type=Path, help="keep what was found in this .json file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="tests run side by side")
    words = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "tree"
        results = (words.results or tree.parent / "results.json").absolute()
        copy_tree(tree)
        enter(tree, tree.parent / "hooks")
        options = all_options()
        for name in words.names:
            if not any(option.is_named_by(name) for option in options):
                parser.error(f"no verb or option is named {name}")
        if words.names:
            options = [option for option in options if any(map(option.is_named_by, words.names))]
        survived = check(options, Known(results), tree.parent, max(1, words.jobs))
    minutes = (time.monotonic() - started) / 60
    num_noticed = len(options) - len(survived)
    print(f"{num_noticed} of {len(options)} options have a test that notices; {minutes:.1f} minutes")
    for option in survived:
        print(f"survived: {option}")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())

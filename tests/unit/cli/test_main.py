"""The entry point: verbs, help, one-line errors, exit codes."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from telechat import __version__
from telechat.cli import main as entry
from telechat.cli.main import main
from telechat.cli.parser import CommandParser
from telechat.cli.verbs import VERBS, Verb
from telechat.errors import CheckpointError
from telechat.logs import LEVELS


def install(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Make every verb run `run` instead of its own."""
    module = types.SimpleNamespace(
        EXAMPLES=("telechat x", "telechat y"), add_arguments=lambda parser: None, run=run
    )
    monkeypatch.setattr(entry, "import_module", lambda name: module)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_overview(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    for verb in VERBS:
        assert " ".join(verb.words) in out and verb.summary in out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["chatt"], ["'chatt'", "Did you mean chat?"]),
        (["frobnicate"], ["'frobnicate'", "Choose one of", "deploy"]),
        (["tokenizer", "trian"], ["'trian'", "Did you mean train?"]),
        (["--model", "demo", "chat"], ["--model", "verb first"]),
    ],
)
def test_wrong_verb_is_one_line_and_two(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("error: ")
    for part in parts:
        assert part in shown.err


def test_unknown_flag_is_one_line_and_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--promt", "x"]) == 2
    assert (
        capsys.readouterr().err == "error: Unknown option --promt for telechat chat. Did you mean --prompt?\n"
    )


def test_error_of_ours_is_one_line_and_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        raise CheckpointError("The folder is\nempty.", hint="Download it again.")

    install(monkeypatch, run)
    assert main(["chat"]) == 1
    assert capsys.readouterr().err == "error: The folder is empty. Download it again.\n"
    with pytest.raises(CheckpointError):
        main(["chat", "--debug"])


def test_a_file_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    words = ["data", "demo", "--rows", "1", "--output"]
    for target in (tmp_path, tmp_path / "file" / "rows.jsonl"):
        assert main([*words, str(target)]) == 1
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1 and str(tmp_path) in message
    with pytest.raises(OSError):
        main([*words, str(tmp_path), "--debug"])


@pytest.mark.parametrize(
    ("theirs", "part"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the manual.", "--max-batch-size"),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.", "--max-batch-size"),
        ("CUDA error: no kernel image is available for execution on the device", "telechat doctor"),
    ],
)
def test_failures_of_the_machine_are_one_line_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, theirs: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        raise RuntimeError(theirs)

    install(monkeypatch, run)
    assert main(["chat"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert part in message and "docs/troubleshooting.md" in message
    with pytest.raises(RuntimeError):
        main(["chat", "--debug"])


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: object) -> int:
        raise RuntimeError("index out of range")

    install(monkeypatch, run)
    with pytest.raises(RuntimeError, match="index out of range"):
        main(["chat"])


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: object) -> int:
        raise KeyboardInterrupt

    install(monkeypatch, run)
    assert main(["chat"]) == 130


def test_result_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda args: 7)
    assert main(["chat"]) == 7


def test_group_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "--help"]) == 0
    out = capsys.readouterr().out
    assert "tokenizer train" in out and "telechat chat" not in out
    assert main(["data"]) == 0


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: "-".join(verb.words))
def test_help_of_each_verb_ends_with_two_commands_that_parse(
    verb: Verb, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*verb.words, "--help"])
    assert stopped.value.code == 0
    *_, heading, first, second = capsys.readouterr().out.rstrip().splitlines()
    assert heading == "examples:"
    shown = set()
    for line in (first, second):
        program, *words = shlex.split(line)
        assert program == "telechat"
        found = entry.find_verb(words)
        assert found is not None
        shown.add(found)
        parser = CommandParser("telechat", summary="x", examples=[])
        import_module(found.module).add_arguments(parser)
        parser.parse(words[len(found.words) :])
    assert verb in shown


def example_of(verb: Verb) -> list[str]:
    """The words of a command of this verb that parses."""
    examples = [shlex.split(line)[1:] for line in import_module(verb.module).EXAMPLES]
    return next(words for words in examples if tuple(words[: len(verb.words)]) == verb.words)


@pytest.fixture
def plain_log() -> Iterator[None]:
    """Afterwards the log is as it was."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: "-".join(verb.words))
def test_log_level_of_each_verb(
    verb: Verb, plain_log: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        for level in LEVELS:
            logging.getLogger("telechat.test").log(getattr(logging, level.upper()), "said at %s", level)
        return 0

    monkeypatch.setattr(import_module(verb.module), "run", run)
    for number, level in enumerate(LEVELS):
        # Right after the verb: what follows two dashes is another command's.
        rest = example_of(verb)[len(verb.words) :]
        assert main([*verb.words, "--log-level", level, *rest]) == 0
        shown = capsys.readouterr().err
        assert [f"said at {each}" in shown for each in LEVELS] == [
            index >= number for index in range(len(LEVELS))
        ]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: "-".join(verb.words))
def test_debug_of_each_verb_shows_the_traceback(
    verb: Verb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        raise CheckpointError("The folder is empty.")

    monkeypatch.setattr(import_module(verb.module), "run", run)
    assert main(example_of(verb)) == 1
    assert capsys.readouterr().err == "error: The folder is empty.\n"
    with pytest.raises(CheckpointError):
        main([*example_of(verb), "--debug"])


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: "-".join(verb.words))
def test_version_of_each_verb(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*verb.words, "--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"telechat {__version__}\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("telechat ")


def test_a_console_without_chinese_shows_a_stand_in() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "telechat", "--help"]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0 and b"telechat chat demo --prompt" in done.stdout


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{shlex.quote(sys.executable)} -m telechat --help | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("usage:") and done.stderr == ""

"""The documentation keeps its promises: every row answered, named tests there, generated pages up to date."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.deploy.command_lines import parse_command

from telechat.config import dotted_keys
from telechat.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
NUM_ORIGINALS = 107


def cells(line: str) -> list[str]:
    """The cells of a Markdown table row; an escaped bar belongs to its cell."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def migration_rows() -> list[list[str]]:
    text = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
    return [cells(line) for line in text.splitlines() if re.match(r"\| \d+ \|", line)]


def test_every_original_command_has_its_row_in_order() -> None:
    assert [int(row[0]) for row in migration_rows()] == list(range(1, NUM_ORIGINALS + 1))
    assert all(len(row) == 4 and row[1] and row[2] for row in migration_rows())


@pytest.mark.parametrize("row", migration_rows(), ids=lambda row: row[0])
def test_a_row_that_works_names_a_test(row: list[str]) -> None:
    state = row[3]
    if state == "not yet":
        return
    match = re.fullmatch(r"works: `([^`:]+)(?:::([^`]+))?`", state)
    assert match, f"row {row[0]}: {state!r} is neither 'not yet' nor 'works: `tests/…`'"
    path, name = ROOT / match[1], match[2]
    assert path.exists(), f"row {row[0]} names {match[1]}, which does not exist"
    if name:
        assert re.search(rf"def {name}\b", path.read_text(encoding="utf-8")), f"{match[1]} has no {name}"


def test_status_rows_have_all_columns() -> None:
    text = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
    rows = [
        cells(line) for line in text.splitlines() if line.startswith("| ") and not line.startswith("| line")
    ]
    for row in rows:
        line, state, command, result, date = row
        if line.startswith("**"):
            continue
        assert state in ("open", "holds", "fails"), line
        if state != "open":
            assert command and result and re.fullmatch(r"\d{4}-\d\d-\d\d", date), line


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/pages.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ["README.md", "README.zh.md"])
def test_readmes_keep_the_licences_apart(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert "Apache-2.0" in text and "2401.03804" in text
    assert "community licence" in text or "社区许可" in text


def documented_commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, and of its indented ones, that call `telechat`."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"^    (telechat .*)$", text, re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    # Variables may stand before the program, and its output may go to a file.
    found = [re.match(r"(?:[A-Z_]+=\S+ )*(telechat .*?)(?: > \S+)?$", line.strip()) for line in lines]
    return [match[1] for match in found if match]


# The page of all commands is written from their own parsers.
PAGES = [
    path
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
    if path.name != "commands.md" and documented_commands(path)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_documented_commands_are_read(page: Path) -> None:
    """By the parsers of their verbs; fields of recipes, and the recipes themselves, exist."""
    fields = set(dotted_keys(TrainConfig))
    for line in documented_commands(page):
        args = parse_command(shlex.split(line, comments=True))
        if hasattr(args, "words"):  # those of `telechat launch`
            args = parse_command(["telechat", *args.words])
        assert set(getattr(args, "overrides", ())) <= fields, line
        config = getattr(args, "config", None)
        assert config is None or config.parts[0] != "recipes" or (ROOT / config).is_file(), line


def test_both_readmes_give_the_same_commands() -> None:
    """Their comments differ."""
    english, chinese = (
        [shlex.split(line, comments=True) for line in documented_commands(ROOT / name)]
        for name in ("README.md", "README.zh.md")
    )
    assert english == chinese and len(english) > 5

"""docs/troubleshooting.md, the table that links to it, and the sources say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from telechat.cli.main import MACHINE_FAILURES, main
from telechat.cli.troubleshooting import ENTRIES, PAGE, link_for

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")


def slug(heading: str) -> str:
    """The anchor that a heading gets: small letters, dashes for spaces, no other marks."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def entries() -> dict[str, list[str]]:
    """Anchor -> the messages of ours quoted below that heading."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        assert slug(heading) not in found, heading
        found[slug(heading)] = re.findall(r"^> `([^`]*)`", body, re.MULTILINE)
    return found


def literal(node: ast.AST) -> str | None:
    """A string of the source, with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[sd]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        return re.sub(r"…(\.…)+", "…", text)
    return None


@pytest.fixture(scope="module")
def literals() -> list[str]:
    """Every string of the sources but that of the table itself."""
    paths = [path for path in (ROOT / "src").rglob("*.py") if path.name != "troubleshooting.py"]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in [*paths, ROOT / "deploy.py"]]
    return [text for tree in trees for node in ast.walk(tree) if (text := literal(node))]


@pytest.mark.parametrize("message", sorted({text for texts in entries().values() for text in texts}))
def test_a_quoted_message_is_produced_by_the_sources(message: str, literals: list[str]) -> None:
    assert any(message in text for text in literals)


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_an_error_links_to_is_there_and_quotes_it(entry: str) -> None:
    quoted = entries()[entry]
    for pattern in ENTRIES[entry]:
        (found,) = [text for text in quoted if pattern in text]
        # An earlier entry must not take the message.
        assert link_for(found) == f"{PAGE}#{entry}"


def test_failures_of_the_machine_have_entries() -> None:
    assert {link_for(text) for text in MACHINE_FAILURES.values()} == {
        f"{PAGE}#out-of-memory",
        f"{PAGE}#pytorch-does-not-fit-the-device",
    }


def test_the_link_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "show", "no-such-folder"]) == 2
    assert capsys.readouterr().err.endswith(f"See {PAGE}#no-such-model.\n")


def test_doctor_links_too(capsys: pytest.CaptureFixture[str]) -> None:
    from telechat.cli import doctor

    doctor.print_section("kernels", [("own", "none: no C compiler was found"), ("torch", "2.13")])
    out = capsys.readouterr().out.splitlines()
    assert out[1].endswith(f"(see {PAGE}#no-c-compiler)") and out[2].endswith("2.13")


def test_other_messages_have_no_link() -> None:
    assert link_for("The folder is empty.") is None

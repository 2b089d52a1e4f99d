"""`telechat data inspect`: what it shows of each kind of file, and that nothing in a file is obeyed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from telechat.cli.main import main

CHATS = [
    {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"answer {n}"}]}
    for n in range(4)
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def chats(tmp_path: Path) -> str:
    return write(tmp_path / "chats.jsonl", CHATS)


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["data", "inspect", *words]) == 0
    return capsys.readouterr().out


def test_shows_kind_books_lengths_borders_and_mask(chats: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown([chats], capsys)
    assert f"{chats}: messages rows (they have the field messages)" in out
    assert re.search(r"^read +4 +\d+$", out, re.MULTILINE)
    assert "lengths in tokens" in out and "█" in out
    assert "sequence 1 of 4: " in out and "sequence 4 of 4: " in out
    assert "<_bot>⟦answer 0<_end>⟧" in out
    assert "\x1b" not in out


def test_colours_only_on_a_terminal_that_wants_them(
    chats: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    coloured = shown([chats], capsys)
    assert "\x1b[32m" in coloured and "⟦" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown([chats], capsys)


def test_rows_is_the_number_of_samples(chats: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [chats, "--max-length", "50", "--rows"]
    assert [shown([*words, number], capsys).count("══ sample ") for number in ("1", "3")] == [1, 3]


def test_samples_come_in_the_order_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*CHATS[:1], {"messages": [CHATS[0]["messages"][0], {"role": "assistant", "content": "很" * 40}]}]
    out = shown([write(tmp_path / "a.jsonl", rows), "--max-length", "100", "--rows", "1"], capsys)
    assert "answer 0" in out and "很" not in out


def test_max_length_drops_by_name(chats: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*CHATS, {"messages": [{"role": "user", "content": "很" * 90}, CHATS[0]["messages"][1]]}]
    out = shown([write(tmp_path / "a.jsonl", rows), "--max-length", "80"], capsys)
    assert re.search(r"\+ dropped: longer than 80 tokens +1 ", out)
    assert "dropped" not in shown([chats], capsys)


def test_loss_on_and_mode_change_the_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", [{"input": "q", "output": "a"}])
    assert "<_user>q<_bot>⟦a<_end>⟧" in shown([path], capsys)
    assert "⟦<_user>⟧q⟦<_bot>a<_end>⟧" in shown([path, "--loss-on", "turns"], capsys)
    official = shown([path, "--mode", "official", "--max-length", "20"], capsys)
    assert "left padding, attended (official)" in official and "⟦<_user>⟧q⟦<_bot>a<_end>⟧" in official


def test_bad_rows_are_listed_or_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", [*CHATS, {"messages": []}])
    out = shown([path], capsys)
    assert f"malformed: {path} line 5: the field messages is empty." in out
    assert main(["data", "inspect", path, "--on-bad-row", "stop"]) == 1
    assert "line 5" in capsys.readouterr().err


def test_the_tokenizer_named_is_used(
    chats: str, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = shown([chats], capsys), shown([chats, "--tokenizer", str(tiny_model_folder)], capsys)
    assert f"tokens of {tiny_model_folder}" in theirs and f"tokens of {tiny_model_folder}" not in ours
    read = [re.search(r"^read +\d+ +(\d+)$", out, re.MULTILINE) for out in (ours, theirs)]
    assert read[0] and read[1] and read[0][1] != read[1][1]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"prompt": "q", "chosen": "a", "rejected": "b"}], ["chosen: ", "rejected: ", "⟦b<_end>⟧"]),
        ([{"prompt": "q", "completion": "a", "label": False}], ["bad: "]),
        ([{"text": "天地玄黄"}], ["pretraining rows", "天⟦地", "<_end>⟧"]),
        ([{"input_ids": [50, 51, 52], "labels": [-100, 51, 52]}], ["packed rows", "3 tokens, 2 learnt"]),
    ],
)
def test_other_kinds(
    tmp_path: Path, rows: list[Any], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown([write(tmp_path / "a.jsonl", rows)], capsys)
    assert all(text in out for text in expected), out


def test_nothing_in_a_row_reaches_the_terminal_as_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a\x1b]0;owned\x07\u202eb\u2028c\td\ne"
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    out = shown([write(tmp_path / "a.jsonl", [{"messages": messages}])], capsys)
    assert not set(out) & {"\x1b", "\x07", "\u202e", "\u2028", "\t"}
    assert "\\u001b" in out and "\\u202e" in out and "⇥" in out and "⏎" in out


def test_html_is_written_whole_and_escaped(
    tmp_path: Path, chats: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "<script>alert(1)</script>&amp; \"'"
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "<img src=x onerror=y>"}]
    path = write(tmp_path / "<b>.jsonl", [{"messages": messages}, {"messages": ["<i>"]}])
    page_path = tmp_path / "new" / "page.html"
    out = shown([path, "--html", str(page_path)], capsys)
    assert "sample 1" not in out and str(page_path) in out
    page = page_path.read_text(encoding="utf-8")
    assert not re.search(r"<(script|img|i|b)\b", page)
    assert "<_bot>" not in page and "&lt;_bot&gt;" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is loaded from anywhere
    assert "content=\"default-src 'none'" in page
    for part in ("Where every row and token went", "Malformed rows", "Lengths in tokens", 'class="t l"'):
        assert part in page
    plain = re.sub(r"<[^>]*>", "", page)
    assert "&lt;script&gt;alert(1)" in plain
    marked = re.findall(r'<span class="t l[^"]*" title="\d+">([^<]*)</span>', page)
    assert "".join(marked) == "&lt;img src=x onerror=y&gt;&lt;_end&gt;"
    assert main(["data", "inspect", chats, "--html", str(tmp_path)]) == 1
    assert "Cannot write" in capsys.readouterr().err

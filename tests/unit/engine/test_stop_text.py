"""Text from tokens: whole characters, stop strings across token boundaries, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.engine.engine_samples import ByteTokenizer

from telechat.engine.text import StopScanner, TextStream


def shown(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """Text and stop string when `text` arrives byte by byte."""
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer.stream_decoder(), stop)
    out = ""
    for token_id in tokenizer.encode(text):
        piece, found = stream.push(token_id)
        out += piece
        if found is not None:
            return out, found
    piece, found = stream.finish()
    return out + piece, found


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("hello END more", ("END",), ("hello ", "END")),
        ("hello EN", ("END",), ("hello EN", None)),
        ("问题：答案。\n\n问题", ("\n\n",), ("问题：答案。", "\n\n")),
        ("aab", ("ab",), ("a", "ab")),
        ("abcabd", ("abd",), ("abc", "abd")),
        ("x、y", ("。", "、"), ("x", "、")),
        ("xab", ("b", "ab"), ("x", "ab")),
        ("plain", (), ("plain", None)),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], expected: tuple[str, str | None]) -> None:
    assert shown(text, stop) == expected


def test_half_a_character_waits() -> None:
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer.stream_decoder())
    assert [stream.push(token_id)[0] for token_id in tokenizer.encode("é中")] == ["", "é", "", "", "中"]


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer.stream_decoder(), ("x",))
    stream.push(tokenizer.encode("中")[0])
    assert stream.finish() == ("\ufffd", None)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    scanner = StopScanner(("STOP",))
    assert scanner.push("go S") == ("go ", None)
    assert scanner.push("TO") == ("", None)
    assert scanner.push("RE") == ("STORE", None)


@given(
    pieces=st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
    stop=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_shown_text_is_the_text_before_the_first_stop(pieces: list[str], stop: tuple[str, ...]) -> None:
    scanner = StopScanner(stop)
    whole, out, found = "", "", None
    for piece in pieces:
        whole += piece
        text, found = scanner.push(piece)
        out += text
        if found is not None:
            break
        # Nothing of a stop string has been shown, and nothing else is missing but its possible beginning.
        assert whole.startswith(out)
        assert len(whole) - len(out) < max((len(text) for text in stop), default=1)
    if found is None:
        out += scanner.finish()
        assert out == whole
        assert not any(text in whole for text in stop)
    else:
        assert found in stop
        assert whole.startswith(out + found)
        assert not any(text in out for text in stop)

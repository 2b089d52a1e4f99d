"""Tool calls taken out of a text that arrives in pieces: where it is cut makes no difference."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telechat.serve.openai.json_scan import MAX_DEPTH, JsonScanner, NotJson
from telechat.serve.openai.tool_parser import CallPiece, TextPiece, ToolCallParser

NAMES = {name: name for name in ("f", "g", "get_weather")}
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
FENCED = '<tool_call>\n```json\n{"name": "g", "arguments": {"code": "```py\\n1\\n```"}}\n```\n</tool_call>'
PIECES = st.sampled_from(
    [
        "text",
        " ",
        "\n",
        CALL,
        FENCED,
        '<tool_call>{"name": "g"}</tool_call>',
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}',
        '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>',
        "<tool_call>",
        "</tool_call>",
        "</tool",
        "<tool_",
        "<",
        "```",
        '{"name": "f"}',
        '{"name": "f", "argum',
        "说明",
        "<<tool_call>",
        "\\",
        '"',
    ]
)


def read(pieces: Iterable[str], *, only_first: bool = False) -> tuple[str, list[tuple[str, str]], list[str]]:
    """(text, calls, texts as they were shown) of an answer that arrives in these pieces."""
    parser = ToolCallParser(NAMES, only_first=only_first)
    found = []
    shown = []
    for piece in pieces:
        new = parser.push(piece)
        shown.append("".join(part.text for part in new if isinstance(part, TextPiece)))
        found += new
    found += parser.finish()
    calls: list[list[str]] = []
    for part in found:
        if isinstance(part, CallPiece) and part.name is not None:
            assert part.index == len(calls) and part.id and part.arguments == ""
            calls.append([part.name, ""])
        elif isinstance(part, CallPiece):
            assert part.index == len(calls) - 1 and part.id is None
            calls[-1][1] += part.arguments
    text = "".join(part.text for part in found if isinstance(part, TextPiece))
    assert parser.num_calls == len(calls)
    return text, [(name, arguments) for name, arguments in calls], shown


@given(st.lists(PIECES, max_size=8).map("".join), st.data())
def test_cuts_make_no_difference(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    only_first = data.draw(st.booleans())
    whole = read([text], only_first=only_first)[:2]
    assert read(pieces, only_first=only_first)[:2] == whole
    assert read(text, only_first=only_first)[:2] == whole
    for name, arguments in whole[1]:
        assert name in NAMES
        assert isinstance(json.loads(arguments), dict)


@given(st.lists(PIECES, max_size=8).map("".join))
def test_text_without_calls_is_unchanged(text: str) -> None:
    shown, calls, _ = read(text)
    if not calls:
        assert shown == text


@given(st.text(alphabet="abc<>_tol \n", max_size=60))
def test_ordinary_text_passes_unchanged(text: str) -> None:
    assert read(text)[:2] == (text, [])


def test_text_is_shown_at_once_unless_it_may_be_a_tag() -> None:
    *_, shown = read(["Look", ": 1 <", " 2", " <tool", "s>"])
    assert shown == ["Look", ": 1", " < 2", "", " <tools>"]


def test_a_call_is_given_out_when_its_object_is_complete() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.push('<tool_call>\n{"name": "f", "arguments": {"x": 1}') == []
    opened, arguments = parser.push("}")
    assert isinstance(opened, CallPiece) and isinstance(arguments, CallPiece)
    assert (opened.index, opened.name, arguments.arguments) == (0, "f", '{"x": 1}')
    # A text that cannot become a call is not held back until the end.
    assert parser.push('</tool_call>\n<tool_call>{"name": x') == [TextPiece('<tool_call>{"name": x')]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"before\n{CALL}\nafter", ("before\nafter", [("f", '{"x": 1}')])),
        (f"{CALL}\nafter", ("after", [("f", '{"x": 1}')])),
        (f"{CALL}\n{CALL}\n", ("", [("f", '{"x": 1}')] * 2)),
        (f"{CALL}{CALL}", ("", [("f", '{"x": 1}')] * 2)),
        (CALL.removesuffix("\n</tool_call>"), ("", [("f", '{"x": 1}')])),
        (CALL.removesuffix("_call>"), ("", [("f", '{"x": 1}')])),
        (FENCED, ("", [("g", '{"code": "```py\\n1\\n```"}')])),
        ('<tool_call>{"name": " get_weather ", "arguments": {}}', ("", [("get_weather", "{}")])),
        ('<tool_call>{"name": "f"}</tool_call>', ("", [("f", "{}")])),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 2}"}</tool_call>', ("", [("f", '{"a": 2}')])),
        ('<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}', ("", [("f", '{"a": "x\\ny"}')])),
        ('<tool_call>{"arguments": {"城": "北京"}, "name": "f"}', ("", [("f", '{"城": "北京"}')])),
        (f"<tool_call>oops</tool_call>{CALL}", ("<tool_call>oops</tool_call>", [("f", '{"x": 1}')])),
        (f'<tool_call>{{"name": "f", "argu{CALL}', ('<tool_call>{"name": "f", "argu', [("f", '{"x": 1}')])),
    ],
)
def test_calls(text: str, expected: tuple[str, list[tuple[str, str]]]) -> None:
    assert read([text])[:2] == expected
    assert read(text)[:2] == expected


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "f", "arguments": {',
        '{"name": "f", "arguments": {"x": 1}',
        '{"name": "f" "arguments": {}}',
        '{"name": "f", "arguments": {"x": 1,}}',
        '{"name": "f", "arguments": {"x": 01}}',
        "{'name': 'f'}",
        '{"name": "f", "arguments": null}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "text"}',
        '{"name": "nobody declared this", "arguments": {}}',
        '{"name": 3}',
        '{"name": ""}',
        "nonsense",
        "[1]",
        "```json\nnonsense\n```",
        '{"name": "f", "arguments": {"x": NaN}}',
        '{"name": "f", "arguments": {"x": "\\ud800"}}',
        '{"name": "f", "arguments": {"x": "\\u12g4"}}',
        '{"name": "f", "arguments": {"x": 1e999}}',
        '{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}",
        '{"name": "f", "arguments": {"x": ' + "[" * 3000 + "]" * 3000 + "}}",
    ],
)
def test_what_is_no_call_stays_text(body: str) -> None:
    text = f"Look:\n<tool_call>\n{body}\n</tool_call>"
    assert read(text)[:2] == (text, [])


def test_only_the_first_call() -> None:
    parser = ToolCallParser(NAMES, only_first=True)
    pieces = parser.push(f"{CALL}\n{CALL}")
    assert parser.is_complete and parser.num_calls == 1
    assert len(pieces) == 2 and parser.finish() == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.booleans(), st.text(max_size=5))
def test_the_scanner_finds_the_end_of_any_object(value: dict[str, Any], is_ascii: bool, rest: str) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=1 if is_ascii else None)
    scanner = JsonScanner(0)
    ends = [scanner.scan(text[:length]) for length in range(1, len(text) + 1)]
    assert ends[:-1] == [None] * (len(text) - 1)
    assert ends[-1] == JsonScanner(0).scan(text + rest) == len(text)


@given(st.text(alphabet='{}[]:," \\tu01-e.x', max_size=30).map("{".__add__))
def test_the_scanner_agrees_with_the_parser(text: str) -> None:
    try:
        _, end = json.JSONDecoder(strict=False).raw_decode(text)
    except ValueError:
        with pytest.raises(NotJson):
            JsonScanner(0).scan(text, is_whole=True)
    else:
        assert JsonScanner(0).scan(text, is_whole=True) == end


def test_nesting_has_an_end() -> None:
    for depth, is_fine in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False)):
        text = '{"a":' * depth + "1" + "}" * depth
        if is_fine:
            assert JsonScanner(0).scan(text) == len(text)
        else:
            with pytest.raises(NotJson):
                JsonScanner(0).scan(text)

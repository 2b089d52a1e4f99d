"""Tool calls taken out of a text that arrives in pieces: where it is cut makes no difference."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from telechat.serve.openai.tools import ToolGate

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
PIECES = st.sampled_from(
    [
        "text",
        " ",
        "\n",
        CALL,
        "<tool_call>",
        "</tool_call>",
        "<tool_",
        "<",
        '{"name": "f"}',
        "说明",
        "<<tool_call>",
    ]
)


def run(pieces: list[str], *, only_first: bool = False) -> tuple[str, list[tuple[str, str]], list[str]]:
    gate = ToolGate(only_first=only_first)
    shown = []
    for piece in pieces:
        shown.append(gate.push(piece))
        if gate.is_complete:
            break
    rest, calls = gate.finish()
    shown.append(rest)
    return (
        "".join(shown),
        [(call["function"]["name"], call["function"]["arguments"]) for call in calls],
        shown,
    )


@given(st.lists(PIECES, max_size=8).map("".join), st.data())
def test_cuts_make_no_difference(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    bounds = [0, *cuts, len(text)]
    pieces = [text[start:end] for start, end in pairwise(bounds)]
    assert run(pieces)[:2] == run([text])[:2]
    assert run(list(text), only_first=True)[:2] == run(list(text), only_first=True)[:2]


@given(st.lists(PIECES, max_size=8).map("".join))
def test_text_without_calls_is_unchanged(text: str) -> None:
    shown, calls, _ = run(list(text))
    if not calls:
        assert shown == text


@given(st.text(alphabet="abc<>_tol \n", max_size=60))
def test_ordinary_text_passes_unchanged(text: str) -> None:
    shown, calls, _ = run(list(text))
    assert (shown, calls) == (text, [])


def test_text_is_shown_at_once_unless_it_may_be_a_tag() -> None:
    _, _, shown = run(["Look", ": 1 <", " 2", " <tool", "s>"])
    assert shown == ["Look", ": 1", " < 2", "", " <tools>", ""]


def test_text_after_a_call_is_kept_apart() -> None:
    assert run(["before\n", CALL, "\nafter"])[:2] == ("before\nafter", [("f", '{"x": 1}')])
    assert run([CALL, "\nafter"])[0] == "after"


def test_a_missing_closing_tag_and_missing_arguments() -> None:
    shown, calls, _ = run(['<tool_call>\n{"name": "f", "arguments": {}}'])
    assert (shown, calls) == ("", [("f", "{}")])
    assert run(['<tool_call>{"name": "f"}</tool_call>'])[1] == [("f", "{}")]


def test_a_closing_tag_inside_a_string_does_not_end_the_call() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"code": "</tool_call>"}}</tool_call>'
    _, calls, _ = run(list(text), only_first=True)
    assert [json.loads(arguments) for _, arguments in calls] == [{"code": "</tool_call>"}]


def test_only_the_first_call() -> None:
    shown, calls, pieces = run([*CALL, "\n", *CALL], only_first=True)
    assert (shown, len(calls)) == ("", 1)
    assert len(pieces) == len(CALL) + 1

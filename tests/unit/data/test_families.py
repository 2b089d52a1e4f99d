"""Every family of rows: how it is recognised, what it says, and what is malformed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from telechat.data.recognise import FAMILIES, recognise_row, recognise_rows
from telechat.data.records import Conversation, Document, Preference, TokenRow
from telechat.data.rows import BadRow, Row, RowProblem
from telechat.errors import ConfigError
from telechat.tokenizer.jinja_template import TOOLS_HEAD, TOOLS_TAIL

USER = {"role": "user", "content": "q"}
BOT = {"role": "assistant", "content": "a"}
TOOL = {"type": "function", "function": {"name": "天气", "parameters": {"type": "object"}}}
TOOL_LINE = '{"type": "function", "function": {"name": "天气", "parameters": {"type": "object"}}}\n'

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "telechat1": [{"input": "<_user>q", "output": "a"}],
    "telechat2": [{"system": "s\n", "dialog": [USER], "multiturn": False, "tool": False}],
    "messages": [
        {"messages": [USER, BOT]},
        {"conversations": [USER, BOT]},
        {"conversation": [USER, BOT], "tools": "[]"},
    ],
    "alpaca": [{"instruction": "i", "input": "", "output": "o"}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}],
    "pretraining": [{"text": "t"}, {"data": "t", "id": 3}],
    "packed": [{"input_ids": [1, 2], "labels": [-100, 2]}],
    "preference": [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "completion": "a", "label": True},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {},
        },
    ],
}


def read(row: dict[str, Any]) -> Any:
    found = recognise_row(row)
    assert found is not None
    return found.family.read(row)


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in EXAMPLES.items() for row in rows])
def test_each_family_is_recognised_and_says_why(name: str, row: dict[str, Any]) -> None:
    found = recognise_row(row)
    assert found is not None and found.family.name == name
    assert any(field in found.reason for field in row)
    assert str(found).startswith(f"{name} rows (they have ")


def test_every_family_has_an_example() -> None:
    assert {family.name for family in FAMILIES} == EXAMPLES.keys()


def test_rows_of_no_family_and_no_rows_are_refused() -> None:
    path = Path("f")
    with pytest.raises(ConfigError, match="no rows"):
        recognise_rows([], path)
    with pytest.raises(ConfigError, match=r"line 4: its fields are question, answer\."):
        recognise_rows([Row(path, 4, {"question": "q", "answer": "a"})], path)
    with pytest.raises(ConfigError, match="line 1: it is not JSON"):
        recognise_rows([BadRow(path, 1, "it is not JSON.")], path)
    known = recognise_rows([BadRow(path, 1, "bad"), Row(path, 2, {"text": "t"})], path)
    assert known.family.name == "pretraining"


def test_telechat1_turns() -> None:
    row = {"input": "<_user>q1<_bot>a1<_user>q2<_bot>a2<_user>q3", "output": "<_bot>a3"}
    assert [(m["role"], m["content"]) for m in read(row).messages] == [
        *(("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")),
        *(("user", "q3"), ("assistant", "a3")),
    ]


def test_telechat1_marks_in_a_single_question_stay_text() -> None:
    conversation = read({"input": "what is <_user>?", "output": "<_end> is a mark"})
    assert [m["content"] for m in conversation.messages] == ["what is <_user>?", "<_end> is a mark"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"input": "q1<_bot>a1", "output": "a"}, "ends with an answer"),
        ({"input": "q1<_bot>a<_bot>b<_user>q", "output": "a"}, "turn 1 of input has 2"),
        ({"input": "q1<_user>q2<_bot>a<_user>q", "output": "a"}, "turn 1 of input has 0"),
        ({"input": 3, "output": "a"}, "field input is a int"),
        ({"input": "q", "output": None}, "field output is null"),
    ],
)
def test_telechat1_malformed(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowProblem, match=problem):
        read(row)


def test_telechat2_system_loses_the_newline_that_the_template_adds() -> None:
    conversation = read({"system": "s\n\n", "dialog": [USER, {"role": "bot", "content": "a"}]})
    assert conversation.messages[0] == {"role": "system", "content": "s\n"}
    assert conversation.messages[2]["role"] == "assistant"


def tool_row(**changes: Any) -> dict[str, Any]:
    call = '<tool_call>\n{"name": " 天气", "arguments": {"x": 1}}\n</tool_call>'
    result = "<tool_response>\nr1\n</tool_response>"
    row = {
        "system": "s\n\n" + TOOLS_HEAD.removeprefix("\n") + TOOL_LINE + TOOLS_TAIL,
        "dialog": [
            USER,
            {"role": "bot", "content": f"let me\n{call}\n{call}"},
            {"role": "user", "content": f"{result}\n{result.replace('r1', 'r2')}"},
            {"role": "bot", "content": "done"},
        ],
        "multiturn": True,
        "tool": True,
    }
    return {**row, **changes}


def test_telechat2_tools_calls_and_results_are_taken_apart() -> None:
    conversation = read(tool_row())
    assert conversation.tools == (TOOL,)
    assert [m["role"] for m in conversation.messages] == [
        *("system", "user", "assistant", "tool", "tool", "assistant")
    ]
    assert conversation.messages[0]["content"] == "s"
    assert conversation.messages[2]["content"] == "let me\n"
    assert [call["name"] for call in conversation.messages[2]["tool_calls"]] == [" 天气", " 天气"]
    assert [m["content"] for m in conversation.messages[3:5]] == ["r1", "r2"]


@pytest.mark.parametrize(
    "content",
    [
        '<tool_call>\n{"name":"x","arguments":{}}\n</tool_call>',  # other blanks than the template's
        '<tool_call>\n{"arguments": {}, "name": "x"}\n</tool_call>',
        '<tool_call>\n{"name": "x", "arguments": "text"}\n</tool_call>',
        "<tool_call>\nnot json\n</tool_call>",
        '<tool_call>\n{"name": "x", "arguments": {}}\n</tool_call> and more',
    ],
)
def test_telechat2_calls_that_would_read_differently_stay_text(content: str) -> None:
    messages = read(tool_row(dialog=[USER, {"role": "bot", "content": content}])).messages
    assert messages[-1] == {"role": "assistant", "content": content}


def test_telechat2_rows_not_marked_tool_stay_text() -> None:
    conversation = read(tool_row(tool=False))
    assert not conversation.tools and all("tool_calls" not in m for m in conversation.messages)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"dialog": [USER]}, "field system is missing"),
        ({"system": "s", "dialog": []}, "dialog is empty"),
        ({"system": "s", "dialog": ["x"]}, "turn 0 of dialog is a str"),
        ({"system": "s", "dialog": [{"role": "human", "content": "x"}]}, "role 'human'"),
        ({"system": "s", "dialog": [{"role": "user"}]}, "no text"),
        ({"system": "s", "dialog": [USER], "tool": "yes"}, "true or false"),
    ],
)
def test_telechat2_malformed(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowProblem, match=problem):
        read(row)


def test_messages_with_tools_calls_and_weights() -> None:
    calls = [{"type": "function", "function": {"name": "天气", "arguments": "{}"}}]
    answers = [{"role": "assistant", "content": None, "tool_calls": calls}, {**BOT, "weight": 0}]
    conversation = read(
        {"messages": [{"role": "developer", "content": "s"}, USER, *answers], "tools": [TOOL]}
    )
    assert conversation.messages[0]["role"] == "system"
    assert conversation.tools == (TOOL,) and conversation.answer_weights == (1.0, 0.0)
    assert read({"messages": [USER, BOT]}).answer_weights is None


def test_columns_of_json_text_are_read() -> None:
    row = {
        "conversation": [USER, {"role": "assistant", "tool_calls": '[{"name": "x", "arguments": {}}]'}],
        "tools": '[{"type": "function", "function": {"name": "x"}}]',
    }
    conversation = read(row)
    assert conversation.tools[0]["function"]["name"] == "x"
    assert conversation.messages[1]["tool_calls"][0]["name"] == "x"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": "hello"}, "must be a list"),
        ({"messages": []}, "is empty"),
        ({"messages": ["hello"]}, "message 0 is a str"),
        ({"messages": [{"content": "x"}]}, "no role"),
        ({"messages": [USER, {**BOT, "weight": -1}]}, "weight of message 1 is -1"),
        ({"messages": [USER, {**BOT, "weight": True}]}, "weight of message 1 is True"),
        ({"messages": [USER], "tools": "[oops"}, "tools is text that is not JSON"),
        ({"messages": [USER], "tools": {"a": 1}}, "tools is a dict"),
    ],
)
def test_messages_malformed(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowProblem, match=problem):
        read(row)


def test_alpaca() -> None:
    row = {"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["q", "a"]]}
    assert [m["content"] for m in read(row).messages] == ["s", "q", "a", "i\nx", "o"]
    assert [m["content"] for m in read({"instruction": "i", "output": "o"}).messages] == ["i", "o"]
    for bad in ({**row, "history": [["q"]]}, {**row, "history": "q"}, {**row, "instruction": 1}):
        with pytest.raises(RowProblem):
            read(bad)


def test_sharegpt() -> None:
    turns = [
        ("human", "q"),
        ("function_call", '{"name": "x", "arguments": {}}'),
        ("observation", "r"),
        ("gpt", "a"),
    ]
    row = {
        "conversations": [{"from": speaker, "value": value} for speaker, value in turns],
        "system": "s",
        "tools": '[{"name": "x"}]',
    }
    conversation = read(row)
    assert [m["role"] for m in conversation.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert conversation.tools == ({"type": "function", "function": {"name": "x"}},)
    for bad in (
        {"from": "cat", "value": "v"},
        {"from": "gpt", "value": 1},
        {"from": "function_call", "value": "{"},
    ):
        with pytest.raises(RowProblem):
            read({"conversations": [{"from": "human", "value": "q"}, bad]})


def test_pretraining_and_packed() -> None:
    assert read({"text": "t"}) == Document("t") and read({"data": "d"}) == Document("d")
    assert read({"input_ids": [5, 6]}) == TokenRow((5, 6), (True, True))
    assert read({"input_ids": [5, 6], "labels": [-100, 6]}) == TokenRow((5, 6), (False, True))
    assert read({"input_ids": [5, 6], "loss_mask": [1, 0]}) == TokenRow((5, 6), (True, False))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"input_ids": []}, "is empty"),
        ({"input_ids": [-4]}, "holds -4"),
        ({"input_ids": ["a"]}, "whole numbers"),
        ({"input_ids": [1, 2], "labels": [2]}, "labels has 1 entries"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, "label 0 is 2 and its token 1"),
        ({"input_ids": [1, 2], "weights": [1]}, "weights has 1 entries"),
        ({"input_ids": [1, 2], "weights": [1, float("nan")]}, "one of the weights is nan"),
    ],
)
def test_packed_malformed(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowProblem, match=problem):
        read(row)


def test_preferences_in_every_form() -> None:
    pair = Preference((USER,), (BOT,), ({"role": "assistant", "content": "b"},))
    assert read({"prompt": "q", "chosen": "a", "rejected": "b"}) == pair
    assert read({"prompt": [USER], "chosen": [BOT], "rejected": "b", "id": 1}) == pair
    assert read({"chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "b"}]}) == pair
    turns = {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}}
    assert read({**turns, "rejected": {"from": "gpt", "value": "b"}}) == pair
    single = read({"prompt": [USER], "completion": [BOT], "label": False})
    assert single == Preference((USER,), (BOT,), None, False)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "the same"),
        ({"prompt": "q", "chosen": [USER], "rejected": "b"}, "nothing of the user"),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "field chosen"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "q", "completion": "a", "label": 1}, "true or false"),
    ],
)
def test_preferences_malformed(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowProblem, match=problem):
        read(row)


def test_pages_votes_are_preference_rows(tmp_path: Path) -> None:
    """What the page writes is read, pairs and single votes."""
    from telechat.data.rows import read_rows
    from telechat.serve.page.votes import Vote, VoteFolder

    folder = VoteFolder(tmp_path)
    for digit, label, answer in (("a", True, "good"), ("b", False, "bad")):
        vote = Vote(
            id=digit * 32, label=label, prompt=({"role": "user", "content": "q"},), answer=answer, model="m"
        )
        folder.record(vote)
    [pair] = [read(row.value) for row in read_rows(folder.pairs_path) if isinstance(row, Row)]
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == ("good", "bad")
    votes = [read(row.value) for row in read_rows(folder.votes_path) if isinstance(row, Row)]
    assert [vote.label for vote in votes] == [True, False]
    assert isinstance(votes[0], Preference) and not isinstance(votes[0], Conversation)

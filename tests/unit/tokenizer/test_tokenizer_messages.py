"""Conversations as users send them: what is accepted, and the error for what is not."""

from __future__ import annotations

from typing import Any

import pytest

from telechat.errors import ConfigError, PromptError
from telechat.tokenizer.chat_formats import CHAT_FORMATS, chat_format_by_name
from telechat.tokenizer.messages import FunctionCall, Message, check_tools, read_messages

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"城市": "北京"}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def render(
    format_name: str, messages: list[dict[str, Any]], *, official: bool = False, **options: Any
) -> str:
    parts = CHAT_FORMATS[format_name].render(
        read_messages(messages),
        check_tools(options.get("tools")),
        add_generation_prompt=options.get("add_generation_prompt", True),
        official=official,
    )
    return "".join(part.text for part in parts)


def test_roles_and_content() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": parts},
        {"role": "bot", "content": "c"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "d", "tool_call_id": "c1"},
    ]
    assert read_messages(messages) == [
        Message("system", ""),
        Message("user", "ab"),
        Message("assistant", "c"),
        Message("assistant", "", (FunctionCall("f", {"城市": "北京"}),)),
        Message("tool", "d"),
    ]


def test_string_arguments_are_parsed_before_they_are_dumped() -> None:
    as_text = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    bare = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"name": "f", "arguments": {"城市": "北京"}}],
    }
    expected = '<tool_call>\n{"name": "f", "arguments": {"城市": "北京"}}\n</tool_call>'
    for message in (as_text, bare):
        assert expected in render("telechat2", [USER, message])
    empty = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": ""}]}
    assert '"arguments": {}' in render("telechat2", [USER, empty])


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "empty"),
        ("hi", "must be a list"),
        (USER, "must be a list"),
        (["hi"], "Message 0 is a str"),
        ([{"role": "robot", "content": "x"}], "'robot'"),
        ([{"content": "x"}], "None"),
        ([{"role": "user", "content": ""}], "Message 0 (user) is empty"),
        ([{"role": "user", "content": None}], "null"),
        ([{"role": "user", "content": 3}], "a int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url'"),
        ([{**USER, "tool_calls": [CALL]}], "only the assistant"),
        ([{"role": "assistant", "tool_calls": "f"}], "must be a list"),
        ([{"role": "assistant", "tool_calls": [{}]}], "names no function"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}], "not JSON"),
    ],
)
def test_malformed_messages(messages: Any, says: str) -> None:
    with pytest.raises(PromptError) as caught:
        read_messages(messages)
    assert says in caught.value.message


@pytest.mark.parametrize("tools", ["f", {"name": "f"}, [3], [{"name": "f"}], [{**TOOL, "type": "retrieval"}]])
def test_malformed_tools(tools: Any) -> None:
    with pytest.raises(PromptError):
        check_tools(tools)


@pytest.mark.parametrize("name", ["telechat1", "telechat2-115b"])
def test_older_formats_refuse_what_they_cannot_express(name: str) -> None:
    system, tool = {"role": "system", "content": "s"}, {"role": "tool", "content": "t"}
    called = {"role": "assistant", "content": "c", "tool_calls": [CALL]}
    for messages in ([system, USER], [USER, tool], [USER, called]):
        with pytest.raises(PromptError, match=name):
            render(name, messages)
    with pytest.raises(PromptError, match="no tools"):
        render(name, [USER], tools=[TOOL])
    first = "<_start>" if name == "telechat2-115b" else ""
    assert render(name, [system, USER, tool], official=True, tools=[TOOL]) == first + "<_user>hi<_bot>"


def test_template_takes_a_system_message_only_in_front() -> None:
    late = [USER, {"role": "system", "content": "s"}]
    with pytest.raises(PromptError, match="Message 1"):
        render("telechat2", late)
    assert render("telechat2", late, official=True) == render("telechat2", [USER])
    assert render("telechat2", [{"role": "system", "content": "s"}, USER]) == "<_system>s\n<_user>hi<_bot>"


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_generation_prompt(name: str) -> None:
    assert render(name, [USER]) == render(name, [USER], add_generation_prompt=False) + "<_bot>"


def test_unknown_format() -> None:
    with pytest.raises(ConfigError) as caught:
        chat_format_by_name("chatml")
    assert "telechat2-115b" in str(caught.value)

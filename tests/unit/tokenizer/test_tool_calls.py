"""Reading tool calls back from generated text."""

from __future__ import annotations

import json

import pytest

from telechat.tokenizer.tool_calls import parse_tool_calls

WEATHER = {"name": "get_weather", "arguments": {"city": "杭州", "days": 2}}


def tagged(call: object) -> str:
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def test_plain_text_is_returned_unchanged() -> None:
    assert parse_tool_calls("  你好！\n") == ("  你好！\n", [])


def test_one_call() -> None:
    assert parse_tool_calls(tagged(WEATHER)) == ("", [WEATHER])


def test_several_calls_keep_their_order_and_the_text_around_them() -> None:
    second = {"name": "get_time", "arguments": {}}
    text = f"我来查一下。{tagged(WEATHER)}\n{tagged(second)}\n请稍等。"
    assert parse_tool_calls(text) == ("我来查一下。\n请稍等。", [WEATHER, second])


def test_missing_closing_tag_at_the_end() -> None:
    assert parse_tool_calls(tagged(WEATHER).removesuffix("\n</tool_call>")) == ("", [WEATHER])


def test_missing_closing_tag_between_two_calls() -> None:
    text = "<tool_call>" + json.dumps(WEATHER) + tagged(WEATHER)
    assert parse_tool_calls(text) == ("", [WEATHER, WEATHER])


def test_space_around_the_name_is_dropped_and_inside_kept() -> None:
    assert parse_tool_calls(tagged({"name": " look up ", "arguments": {}}))[1] == [
        {"name": "look up", "arguments": {}}
    ]


def test_tags_and_fences_inside_strings_do_not_end_a_call() -> None:
    call = {"name": "run", "arguments": {"code": "```python\nprint('</tool_call><tool_call>')\n```"}}
    assert parse_tool_calls(tagged(call)) == ("", [call])


def test_raw_line_break_inside_a_string() -> None:
    text = '<tool_call>{"name": "run", "arguments": {"code": "a\nb"}}</tool_call>'
    assert parse_tool_calls(text) == ("", [{"name": "run", "arguments": {"code": "a\nb"}}])


def test_code_fence_around_the_object() -> None:
    text = f"<tool_call>\n```json\n{json.dumps(WEATHER)}\n```\n</tool_call>"
    assert parse_tool_calls(text) == ("", [WEATHER])


def test_arguments_as_a_string_of_json() -> None:
    text = tagged({"name": "get_weather", "arguments": json.dumps(WEATHER["arguments"])})
    assert parse_tool_calls(text) == ("", [WEATHER])


def test_missing_arguments_mean_none() -> None:
    assert parse_tool_calls(tagged({"name": "now"}))[1] == [{"name": "now", "arguments": {}}]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "杭',
        "<tool_call>get_weather(杭州)</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{"}</tool_call>',
        "<tool_call>[1, 2]</tool_call>",
        "the tag is <tool_call>",
        "<tool_call>" + "[" * 100_000,
    ],
)
def test_malformed_calls_stay_text(text: str) -> None:
    assert parse_tool_calls(text) == (text, [])


def test_a_malformed_call_does_not_hide_the_next() -> None:
    text = f"<tool_call>oops</tool_call>\n{tagged(WEATHER)}"
    assert parse_tool_calls(text) == ("<tool_call>oops</tool_call>", [WEATHER])

"""Answers that must look like something: what reaches the engine, by the grammar's own judgement."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.serve.serve_fakes import FakeEngine

URL = "/v1/chat/completions"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "now"}}
WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.fixture
def accepted(client: TestClient, engine: FakeEngine) -> Any:
    """Which of some texts an answer to a request with these fields may be."""

    def judge(texts: list[str], **fields: Any) -> list[str]:
        answer = client.post(URL, json={"messages": [{"role": "user", "content": "hi"}], **fields})
        assert answer.status_code == 200, answer.text
        assert engine.params is not None
        asked = engine.params.structured_outputs
        return texts if asked is None else [text for text in texts if engine.llm.intake.accepts(asked, text)]

    return judge


def named(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"response_format": {"type": "text"}}, ["any", "{}"], []),
        ({"response_format": {"type": "json_object"}}, ["{}", '{"a":\n [1]}'], ["[]", "any"]),
        ({"response_format": named(CITY)}, ['{"city": "北京"}'], ["{}", '{"city": 1}', "[]"]),
        ({"structured_outputs": {"json": CITY}}, ['{"city": "x"}'], ["{}"]),
        ({"structured_outputs": {"json_object": True}}, ["{}"], ["[]"]),
        ({"structured_outputs": {"regex": "[0-9]{2}", "json": None}}, ["42"], ["4", "423"]),
        ({"structured_outputs": {"choice": ["好", "bad"]}}, ["好", "bad"], ["good"]),
        ({"structured_outputs": {"grammar": 'start: "a" "b"*'}}, ["abb"], ["b"]),
        ({"guided_json": json.dumps(CITY)}, ['{"city": "x"}'], ["{}"]),
        ({"guided_regex": "a+"}, ["aa"], ["b"]),
        ({"guided_choice": ["yes", "no"]}, ["yes"], ["maybe"]),
        ({"guided_grammar": 'start: "x"'}, ["x"], ["y"]),
    ],
)
def test_structures(accepted: Any, fields: dict[str, Any], good: list[str], bad: list[str]) -> None:
    assert accepted(good + bad, **fields) == good


@pytest.mark.parametrize(
    ("fields", "good"),
    [
        ({"tool_choice": "auto"}, [WEATHER, NOW, f"{NOW}\n{WEATHER}", "text", '{"city": "x"}']),
        ({"tool_choice": "none"}, [WEATHER, NOW, f"{NOW}\n{WEATHER}", "text", '{"city": "x"}']),
        ({"tool_choice": "required"}, [WEATHER, NOW, f"{NOW}\n{WEATHER}"]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [WEATHER, NOW]),
        ({"tool_choice": NAMED}, [NOW]),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": [NAMED]},
                }
            },
            [NOW],
        ),
        (
            {"tool_choice": "auto", "response_format": named(CITY)},
            [WEATHER, NOW, f"{NOW}\n{WEATHER}", '{"city": "x"}'],
        ),
        ({"tool_choice": "required", "response_format": named(CITY)}, [WEATHER, NOW, f"{NOW}\n{WEATHER}"]),
        ({"tool_choice": "none", "response_format": named(CITY)}, ['{"city": "x"}']),
    ],
)
def test_tool_choices(accepted: Any, fields: dict[str, Any], good: list[str]) -> None:
    bad = ["", NOW.replace("now", "later"), WEATHER.replace("city", "town"), WEATHER.replace('"北京"', "1")]
    texts = [WEATHER, NOW, f"{NOW}\n{WEATHER}", "text", '{"city": "x"}']
    found = accepted(texts + bad, tools=TOOLS, **fields)
    assert [text for text in found if text in texts] == good
    if good != texts:
        assert found == good


def test_a_forced_call_comes_back_as_a_call(client: TestClient, engine: FakeEngine) -> None:
    engine.scripts["hi"] = tuple(NOW)
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS, "tool_choice": NAMED}
    choice = client.post(URL, json=body).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    # The prompt shows all tools, whichever is to be called.
    assert engine.llm.tokenizer.tools == TOOLS


def test_parameters_that_no_grammar_can_follow(client: TestClient) -> None:
    def refusal(parameters: Any, *, strict: bool = False) -> dict[str, Any]:
        bad = {"name": "bad", "parameters": parameters, "strict": strict}
        tools = [TOOLS[0], {"type": "function", "function": bad}]
        body = {"messages": [{"role": "user", "content": "hi"}], "tools": tools, "tool_choice": "required"}
        answer = client.post(URL, json=body)
        return {} if answer.status_code == 200 else answer.json()["error"]

    unknown = {"type": "object", "properties": {"a": {"type": "string", "format": "postcode"}}}
    assert refusal(unknown) == {}
    field = "tools.1.function.parameters"
    assert refusal(unknown, strict=True)["param"] == field
    assert refusal({"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}})["param"] == field
    assert refusal({"type": "string"})["param"] == field


def test_arguments_beyond_the_declared_ones(accepted: Any) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"b": 1}}\n</tool_call>'
    for schema, expected in (
        ({"properties": {"a": {}}}, []),
        ({"properties": {"a": {}}, "additionalProperties": True}, [call]),
        ({"type": "object"}, [call]),
        (None, []),
    ):
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        assert accepted([call], tools=tools, tool_choice="required") == expected

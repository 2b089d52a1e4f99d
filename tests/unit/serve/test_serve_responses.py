"""The responses route over a scripted engine: items in and out, and the order of its events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.serve.serve_fakes import MAX_MODEL_LEN, FakeEngine

from telechat.engine import EngineStepError

URL = "/v1/responses"
ANSWER = "你好, world"
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>'
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def ask(client: TestClient, given: Any = "hi", **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"input": given, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stream(client: TestClient, given: Any = "hi", **fields: Any) -> list[dict[str, Any]]:
    """The data of a stream's events; their names and numbers are checked."""
    answer = client.post(URL, json={"input": given, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    found = []
    for block in answer.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def refused(client: TestClient, status: int = 400, **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"input": "hi", **fields})
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_a_text(client: TestClient, engine: FakeEngine) -> None:
    answer = ask(client, max_output_tokens=9, metadata={"a": "b"})
    assert (answer["object"], answer["status"], answer["store"]) == ("response", "completed", False)
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": ANSWER, "annotations": [], "logprobs": []}]
    usage = answer["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (2, 6, 8)
    assert (answer["temperature"], answer["max_output_tokens"], answer["metadata"]) == (0.0, 9, {"a": "b"})
    assert engine.params == engine.llm.default_params.replace(max_tokens=9)
    assert engine.num_open == 0


def test_events_of_a_text(client: TestClient) -> None:
    events = stream(client)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 5,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == ANSWER
    final = events[-1]["response"]
    assert final["output"] == [events[-2]["item"]]
    assert final["output"][0]["content"][0]["text"] == ANSWER == events[-4]["text"]
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1
    assert final["usage"]["output_tokens"] == 6
    assert final["id"] == events[0]["response"]["id"]


def test_calls_are_items_of_their_own(client: TestClient, engine: FakeEngine) -> None:
    engine.scripts["hi"] = ("Let me look.\n", *CALL, "\n", *CALL, "\nDone.")
    items = ask(client, tools=TOOLS)["output"]
    assert [item["type"] for item in items] == ["message", "function_call", "function_call", "message"]
    call = items[1]
    assert (call["name"], json.loads(call["arguments"])) == ("weather", {"city": "北京"})
    assert call["call_id"].startswith("call_") and call["id"].startswith("fc_")
    assert items[0]["content"][0]["text"] == "Let me look."
    events = stream(client, tools=TOOLS)
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1, 2, 3]
    own = [event for event in events if event.get("output_index") == 1]
    assert [event["type"] for event in own] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    assert own[0]["item"]["arguments"] == ""
    assert own[1]["delta"] == own[2]["arguments"] == own[3]["item"]["arguments"]
    assert events[-1]["type"] == "response.completed"


def test_an_answer_cut_off_is_incomplete(client: TestClient, engine: FakeEngine) -> None:
    engine.finish_reason = "length"
    answer = ask(client)
    assert (answer["status"], answer["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert answer["output"][-1]["status"] == "incomplete"
    assert stream(client)[-1]["type"] == "response.incomplete"


def test_an_empty_answer_has_an_empty_message(client: TestClient, engine: FakeEngine) -> None:
    engine.scripts["hi"] = ()
    assert ask(client)["output"][0]["content"][0]["text"] == ""


def test_a_conversation(client: TestClient, engine: FakeEngine) -> None:
    given = [
        {"role": "developer", "content": [{"type": "input_text", "text": "B"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "x"}], "type": "message"},
        {"type": "reasoning", "id": "r", "summary": []},
        {"role": "assistant", "content": [{"type": "output_text", "text": "look"}], "type": "message"},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
        {"type": "function_call", "call_id": "3", "name": "h", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "3", "output": "three"},
    ]
    ask(client, given, instructions="A")
    call = {"type": "function"}
    assert engine.llm.tokenizer.messages == [
        {"role": "system", "content": "A\n\nB"},
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": "look",
            "tool_calls": [
                {**call, "function": {"name": "f", "arguments": {"a": 1}}},
                {**call, "function": {"name": "g", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**call, "function": {"name": "h", "arguments": {}}}],
        },
        {"role": "tool", "content": "three"},
    ]


def test_tools_reach_the_prompt_in_the_shape_of_chat(client: TestClient, engine: FakeEngine) -> None:
    answer = ask(client, tools=TOOLS, tool_choice="auto")
    function = {"name": "weather", "parameters": {"type": "object"}, "strict": False}
    assert engine.llm.tokenizer.tools == [{"type": "function", "function": function}]
    assert (answer["tools"], answer["tool_choice"]) == (TOOLS, "auto")


def test_choices_and_formats(client: TestClient, engine: FakeEngine) -> None:
    def accepts(text: str) -> bool:
        assert engine.params is not None and engine.params.structured_outputs is not None
        return engine.llm.intake.accepts(engine.params.structured_outputs, text)

    for choice in ("required", {"type": "function", "name": "weather"}):
        ask(client, tools=TOOLS, tool_choice=choice)
        assert accepts(CALL) and not accepts("text")
    schema = {"type": "json_schema", "name": "a", "schema": CITY, "strict": True}
    assert ask(client, text={"format": schema})["text"] == {"format": schema}
    assert accepts('{"city": "x"}') and not accepts("{}")
    ask(client, guided_choice=["yes", "no"])
    assert accepts("no") and not accepts("maybe")
    ask(client, text={"format": {"type": "json_object"}})
    assert accepts("{}") and not accepts("[]")
    assert ask(client)["text"] == {"format": {"type": "text"}}
    assert engine.params is not None and engine.params.structured_outputs is None


def test_logprobs(client: TestClient) -> None:
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    part = ask(client, include=include, top_logprobs=2)["output"][0]["content"][0]
    assert [entry["token"] for entry in part["logprobs"]] == ["你", "好", ",", "w", "l"]
    assert part["logprobs"][0]["top_logprobs"][1]["logprob"] == -9999.0
    deltas = [event for event in stream(client, include=include) if event["type"].endswith("text.delta")]
    assert all(len(event["logprobs"]) == 1 for event in deltas)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["text"]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content"),
        ({"input": [{"role": "system", "content": "x"}]}, "input"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{"}]}, "input.0.arguments"),
        ({"input": [{"type": "function_call_output", "output": None}]}, "input.0.output"),
        ({"input": "refuse me"}, "input"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "objekt"}}}}, "text.format"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_a_bad_field_is_named(client: TestClient, fields: dict[str, Any], param: str) -> None:
    error = refused(client, **fields)
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    assert error["param"] == param


def test_what_was_asked_of_memory_is_told(client: TestClient) -> None:
    assert "whole conversation" in refused(client, previous_response_id="resp_1")["message"]
    assert "Use false" in refused(client, store=True)["message"]


@pytest.mark.parametrize("streamed", [False, True])
def test_long_inputs_are_refused(client: TestClient, streamed: bool) -> None:
    error = refused(client, input="x" * MAX_MODEL_LEN, stream=streamed)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


def test_unknown_fields_are_ignored(client: TestClient) -> None:
    ask(client, reasoning={"effort": "low"}, service_tier="auto", prompt_cache_key="x", store=False, foo=1)


def test_failures_of_ours(client: TestClient, engine: FakeEngine) -> None:
    engine.scripts["hi"] = ("some", EngineStepError("boom"))
    assert refused(client, 500)["code"] == "internal_error"
    *_, failed, last = stream(client)
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == "server_error"
    assert (last["type"], last["code"], last["error"]["code"]) == (
        "error",
        "internal_error",
        "internal_error",
    )
    assert "boom" not in json.dumps(last)
    assert engine.num_open == 0

"""Checks of tools and structured output: what agents and extractors rely on."""

from __future__ import annotations

import json
from typing import Any

from telechat.conformance.api import Api
from telechat.conformance.check import Check, FailedError, SkippedError, expect, pick, shown
from telechat.conformance.refusals import check_error

# Every value of the arguments comes from a short list, so that any model finishes a call.
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Beijing", "Shanghai"]}, "today": {"type": "boolean"}},
    "required": ["city", "today"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS},
}
CLOCK = {
    "type": "function",
    "function": {"name": "get_time", "description": "The time now", "parameters": {**PARAMETERS}},
}
ASKED = [{"role": "user", "content": "What is the weather in Beijing today?"}]
MAX_TOKENS = 200
NAMED = {"type": "function", "function": {"name": "get_time"}}


def _ask(api: Api, **fields: Any) -> Any:
    return api.chat(**{"messages": ASKED, "tools": [WEATHER, CLOCK], "max_tokens": MAX_TOKENS, **fields})


def _check_call(call: Any, *names: str) -> None:
    expect(isinstance(pick(call, "id"), str) and bool(call["id"]), "a call has no id")
    expect(pick(call, "type") == "function", f"the type of a call is {shown(call['type'])}")
    name, arguments = pick(call, "function", "name"), pick(call, "function", "arguments")
    expect(name in names, f"the function called is {shown(name)}")
    expect(isinstance(arguments, str), f"arguments are {shown(arguments)}, not a JSON text")
    _check_arguments(arguments)


def _check_arguments(arguments: str) -> None:
    value = _parsed(arguments, "arguments")
    expect(isinstance(value, dict), f"arguments are no object: {shown(arguments)}")
    fits = value.get("city") in ("Beijing", "Shanghai") and isinstance(value.get("today"), bool)
    expect(fits and len(value) == 2, f"arguments do not fit their schema: {shown(arguments)}")


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise FailedError(f"{what} are not JSON: {shown(text)}") from error


def tools_auto(api: Api) -> None:
    choice = pick(_ask(api), "choices", 0)
    calls = pick(choice, "message").get("tool_calls")
    if calls:
        for call in calls:
            expect(isinstance(pick(call, "function", "arguments"), str), "arguments are not a text")
        reason = pick(choice, "finish_reason")
        expect(reason in ("tool_calls", "length"), f"finish_reason is {shown(reason)} beside tool_calls")


def tools_required(api: Api) -> None:
    # An untrained model would go on calling for ever.
    choice = pick(_ask(api, tool_choice="required", parallel_tool_calls=False), "choices", 0)
    calls = pick(choice, "message", "tool_calls")
    expect(isinstance(calls, list) and bool(calls), "tool_choice required gives no call")
    for call in calls:
        _check_call(call, "get_weather", "get_time")
    reason = pick(choice, "finish_reason")
    expect(reason in ("tool_calls", "stop"), f"finish_reason is {shown(reason)}")
    content = pick(choice, "message", "content")
    expect(content is None or isinstance(content, str), f"content is {shown(content)}")


def tools_named(api: Api) -> None:
    choice = pick(_ask(api, tool_choice=NAMED), "choices", 0)
    _check_call(pick(choice, "message", "tool_calls", 0), "get_time")


def tools_none(api: Api) -> None:
    message = pick(_ask(api, tool_choice="none", max_tokens=16), "choices", 0, "message")
    expect(not message.get("tool_calls"), "tool_choice none gives a call")


def tools_stream(api: Api) -> None:
    body: dict[str, Any] = {"messages": ASKED, "tools": [WEATHER, CLOCK], "max_tokens": MAX_TOKENS}
    stream = api.stream(**body, tool_choice="required", parallel_tool_calls=False)
    choices = [choice for event in stream.events for choice in pick(event, "choices")]
    pieces = [piece for choice in choices for piece in pick(choice, "delta").get("tool_calls") or ()]
    expect(bool(pieces), "the stream has no tool_calls")
    calls: dict[int, dict[str, str]] = {}
    for piece in pieces:
        index = pick(piece, "index")
        function = piece.get("function") or {}
        if index not in calls:
            expect(bool(piece.get("id")), "the first piece of a call has no id")
            expect(piece.get("type") == "function", f"the type of a call is {shown(piece.get('type'))}")
            calls[index] = {"name": pick(function, "name"), "arguments": ""}
        calls[index]["arguments"] += function.get("arguments") or ""
    for call in calls.values():
        _check_arguments(call["arguments"])
    reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    expect(reasons[-1:] in (["tool_calls"], ["stop"]), f"finish_reason is {shown(reasons)}")


def tools_results(api: Api) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Beijing", "today": true}'},
    }
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    _ask(api, messages=messages, max_tokens=16)


def tools_bad(api: Api) -> None:
    check_error(api.refused(tools=[{"type": "function"}]), 400)
    missing = {"type": "function", "function": {"name": "no_such_tool"}}
    check_error(api.refused(tools=[WEATHER], tool_choice=missing), 400)


def _formatted(api: Api, response_format: dict[str, Any]) -> Any:
    choice = pick(api.chat(response_format=response_format, max_tokens=MAX_TOKENS), "choices", 0)
    return pick(choice, "message", "content"), pick(choice, "finish_reason")


def json_schema(api: Api) -> None:
    schema = {"name": "weather", "strict": True, "schema": PARAMETERS}
    content, _ = _formatted(api, {"type": "json_schema", "json_schema": schema})
    expect(isinstance(content, str), f"content is {shown(content)}")
    _check_arguments(content)


def json_object(api: Api) -> None:
    content, reason = _formatted(api, {"type": "json_object"})
    if reason == "length":
        raise SkippedError("the model did not finish its object")
    expect(isinstance(_parsed(content, "the contents"), dict), f"content is no object: {shown(content)}")


def json_bad_schema(api: Api) -> None:
    schema = {"name": "weather", "schema": {"type": "no-such-type"}}
    check_error(api.refused(response_format={"type": "json_schema", "json_schema": schema}), 400)
    check_error(api.refused(response_format={"type": "no-such-format"}), 400)


CHECKS = (
    Check("tools-auto", "LangChain agents, Dify", "requests with tools are refused", tools_auto),
    Check("tools-required", "LangChain, openai-python", "a forced call does not come", tools_required),
    Check("tools-named", "LangChain structured output", "another function is called", tools_named),
    Check("tools-none", "openai-python", "a call comes where text was wanted", tools_none),
    Check("tools-stream", "LangChain agents, Dify", "calls of streams cannot be put together", tools_stream),
    Check("tools-results", "LangChain agents", "results of tools are refused", tools_results),
    Check("tools-bad", "gateways", "wrong tools are passed to the model", tools_bad),
    Check("json-schema", "openai-python, LlamaIndex", "answers do not fit their schema", json_schema),
    Check("json-object", "Dify, LangChain", "answers are not JSON", json_object),
    Check("json-bad-schema", "openai-python", "a wrong schema is ignored", json_bad_schema),
)

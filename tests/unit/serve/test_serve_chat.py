"""Chat completions over a scripted engine: fields in, answers and streams out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.serve.serve_fakes import MAX_MODEL_LEN, FakeEngine

from telechat.engine import EngineStepError
from telechat.errors import ContextLengthError, RequestError

URL = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = ("<tool_", 'call>\n{"name": " weather", "argu', 'ments": {"city": "北京"}}\n</tool_', "call>")


def ask(client: TestClient, question: str = "hi", **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"messages": [{"role": "user", "content": question}], **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(client: TestClient, question: str = "hi", **fields: Any) -> list[Any]:
    """The events of a stream, checked byte for byte; the last is "[DONE]" or an error."""
    body = {"messages": [{"role": "user", "content": question}], "stream": True, **fields}
    answer = client.post(URL, json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers
    *events, last = answer.content.split(b"\n\n")
    assert last == b""
    assert all(event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event for event in events)
    texts = [event.removeprefix(b"data: ").decode() for event in events]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


def _format(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


def refused(client: TestClient, status: int = 400, **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"messages": [{"role": "user", "content": "hi"}], **fields})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_whole_answer(client: TestClient, engine: FakeEngine) -> None:
    answer = ask(client, model="fake")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "fake"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "你好, world"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    assert engine.num_open == 0


def test_stream_order_and_common_fields(client: TestClient, engine: FakeEngine) -> None:
    events = stream(client)
    assert events[-1] == "[DONE]"
    chunks = events[:-1]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:-1]] == ["你", "好", ", ", "wor", "ld"]
    assert deltas[-1] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 6 + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)
    assert engine.num_open == 0


def test_a_silent_stream_is_kept_alive(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telechat.serve.connection.IDLE_SECONDS", 0.02)
    engine.scripts["hi"] = ("a", 0.3, "b")
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    blocks = client.post(URL, json=body).text.split("\n\n")
    assert blocks.count(": keep-alive") > 1
    texts = [block for block in blocks if '"content":' in block]
    assert [json.loads(text[6:])["choices"][0]["delta"]["content"] for text in texts] == ["", "a", "b"]
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert engine.num_open == 0


def test_usage_in_a_stream_only_when_asked_for(client: TestClient) -> None:
    *chunks, usage, done = stream(client, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}


def test_several_answers(client: TestClient) -> None:
    answer = ask(client, n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"你好, world"}
    assert answer["usage"]["completion_tokens"] == 18
    finished = [
        chunk["choices"][0]["index"]
        for chunk in stream(client, n=3)[:-1]
        if chunk["choices"][0]["finish_reason"]
    ]
    assert finished == [0, 1, 2]


def test_defaults_come_from_the_model_and_fields_override_them(
    client: TestClient, engine: FakeEngine
) -> None:
    ask(client)
    assert engine.params == engine.llm.default_params
    given = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.2,
        "seed": 11,
        "n": 2,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "max_tokens": 9,
    }
    ask(
        client, **given, stop="\n", stop_token_ids=[5], logit_bias={"65": -100}, logprobs=True, top_logprobs=3
    )
    assert engine.params is not None
    assert {name: getattr(engine.params, name) for name in given} == given
    assert engine.params.stop == ("\n",)
    assert engine.params.stop_token_ids == (5,)
    assert engine.params.logit_bias == {65: -100}
    assert engine.params.logprobs == 3
    ask(client, max_tokens=9, max_completion_tokens=4, top_k=-1, stop=["a", "b"], temperature=1)
    assert (engine.params.max_tokens, engine.params.top_k, engine.params.stop) == (4, 0, ("a", "b"))


def test_null_means_not_given(client: TestClient, engine: FakeEngine) -> None:
    ask(client, temperature=None, n=None, stop=None, stream=None, tools=None, max_tokens=None, logprobs=None)
    assert engine.params == engine.llm.default_params


def test_logprobs(client: TestClient) -> None:
    entry = ask(client, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"][0]
    assert entry["token"] == "你"
    assert entry["bytes"] == list("你".encode())
    assert entry["logprob"] == -0.5
    assert entry["top_logprobs"][1] == {"token": "A", "logprob": -9999.0, "bytes": [65]}
    chunk = stream(client, logprobs=True)[1]
    assert chunk["choices"][0]["logprobs"]["content"][0]["token"] == "你"


def test_roles_and_content_parts(client: TestClient, engine: FakeEngine) -> None:
    messages = [
        {"role": "system", "content": "A"},
        {"role": "developer", "content": "B"},
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
            ],
        },
        {"role": "tool", "content": "ok", "tool_call_id": "1"},
        {"role": "bot", "content": "done"},
        {"role": "user", "content": "thanks"},
    ]
    assert client.post(URL, json={"messages": messages}).status_code == 200
    assert engine.llm.tokenizer.messages == [
        {"role": "system", "content": "A\n\nB"},
        {"role": "user", "content": "xy"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}],
        },
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "thanks"},
    ]


def test_tools_reach_the_prompt_as_they_were_written(client: TestClient, engine: FakeEngine) -> None:
    tools = [{"type": "function", "function": {"strict": True, "name": "f", "x-own": 1}}]
    ask(client, tools=tools)
    assert json.dumps(engine.llm.tokenizer.tools) == json.dumps(tools)
    ask(client, tools=tools, tool_choice="none")
    assert engine.llm.tokenizer.tools is None


def test_tool_call(client: TestClient, engine: FakeEngine) -> None:
    engine.scripts["hi"] = CALL
    choice = ask(client, tools=TOOLS)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "北京"}


def test_tool_calls_in_a_stream(client: TestClient, engine: FakeEngine) -> None:
    engine.scripts["hi"] = ("Let me", " look.\n", *CALL, "\n", *CALL)
    deltas = [chunk["choices"][0]["delta"] for chunk in stream(client, tools=TOOLS)[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me look."
    fragments = [part for delta in deltas for part in delta.get("tool_calls", ())]
    for index in (0, 1):
        first, *rest = [part for part in fragments if part["index"] == index]
        assert set(first) == {"index", "id", "type", "function"}
        assert (first["type"], first["function"]["name"]) == ("function", "weather")
        assert rest and all(set(part) == {"index", "function"} for part in rest)
        assert all(set(part["function"]) == {"arguments"} for part in rest)
        arguments = "".join(part["function"]["arguments"] for part in (first, *rest))
        assert json.loads(arguments) == {"city": "北京"}
    assert len({part["id"] for part in fragments if "id" in part}) == 2
    assert stream(client, tools=TOOLS)[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_one_call_at_a_time_ends_the_answer(client: TestClient, engine: FakeEngine) -> None:
    engine.scripts["hi"] = (*CALL, "\n", *CALL, 1000.0)
    choice = ask(client, tools=TOOLS, parallel_tool_calls=False)["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"
    assert engine.num_open == 0


def test_without_tools_a_tag_is_text(client: TestClient, engine: FakeEngine) -> None:
    engine.scripts["hi"] = CALL
    message = ask(client)["choices"][0]["message"]
    assert message["content"] == "".join(CALL)
    assert "tool_calls" not in message


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "weather", "arguments": {',
        '{"name": "weather", "arguments": 3}',
        '{"name": "undeclared", "arguments": {}}',
        "nonsense",
        '{"name": "weather", "arguments": {"x": NaN}}',
        "[" * 3000,
    ],
)
def test_malformed_calls_come_back_as_text(client: TestClient, engine: FakeEngine, body: str) -> None:
    text = f"<tool_call>\n{body}\n</tool_call>"
    engine.scripts["hi"] = tuple(text)
    choice = ask(client, tools=TOOLS)["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": text}
    assert choice["finish_reason"] == "stop"
    deltas = [chunk["choices"][0]["delta"] for chunk in stream(client, tools=TOOLS)[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ""}, "stop.0"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice"),
        ({"tool_choice": 3}, "tool_choice"),
        ({"response_format": {"type": "json"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        (_format({"type": "objekt"}), "response_format"),
        (_format({"$ref": "#/nowhere"}), "response_format"),
        (_format({"type": "string", "pattern": "(?=a)"}), "response_format"),
        (_format(False), "response_format.json_schema.schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_json": "no JSON"}, "guided_json"),
        ({"guided_grammar": "start: nowhere"}, "guided_grammar"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a"], "response_format": {"type": "json_object"}}, "guided_choice"),
        ({"guided_choice": ["a"], "ignore_eos": True}, "ignore_eos"),
        ({"tools": TOOLS, "guided_regex": "a"}, "guided_regex"),
        ({"tools": TOOLS, "tool_choice": "required", "guided_regex": "("}, "guided_regex"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ],
)
def test_a_bad_field_is_named(client: TestClient, fields: dict[str, Any], param: str) -> None:
    error = refused(client, **fields)
    assert error["type"] == "invalid_request_error"
    assert error["code"] is None
    assert error["param"] == param


def test_bad_arguments_of_an_earlier_call(client: TestClient) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "[" * 5000}}
    error = refused(client, messages=[{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert error["param"] == "messages.0.tool_calls.0.function.arguments"


def test_unknown_fields_are_ignored_and_text_format_is_accepted(client: TestClient) -> None:
    ask(client, store=True, metadata={"a": "b"}, user="u", response_format={"type": "text"}, logit_bias={})


def test_unknown_model(client: TestClient) -> None:
    error = refused(client, 404, model="gpt-9")
    assert (error["code"], error["type"], error["param"]) == (
        "model_not_found",
        "invalid_request_error",
        "model",
    )


@pytest.mark.parametrize("streamed", [False, True])
def test_long_prompts_are_refused_not_cut(client: TestClient, streamed: bool) -> None:
    long = [{"role": "user", "content": "x" * MAX_MODEL_LEN}]
    error = refused(client, messages=long, stream=streamed)
    assert (error["code"], error["type"]) == ("context_length_exceeded", "invalid_request_error")
    assert str(MAX_MODEL_LEN) in error["message"]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("refusal", "code", "param"),
    [
        (ContextLengthError(9, 8), "context_length_exceeded", "messages"),
        (RequestError("bad id", parameter="stop_token_ids"), None, "stop_token_ids"),
    ],
)
def test_what_the_engine_refuses_is_a_400_before_a_stream_starts(
    client: TestClient, engine: FakeEngine, refusal: Exception, code: str | None, param: str, streamed: bool
) -> None:
    engine.refusal = refusal
    error = refused(client, stream=streamed)
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize("failure", [EngineStepError("boom"), ValueError("boom")])
def test_failures_of_ours(client: TestClient, engine: FakeEngine, failure: Exception) -> None:
    engine.scripts["hi"] = ("some", failure)
    error = refused(client, 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "boom" not in error["message"]
    *chunks, last = stream(client)
    assert chunks[-1]["choices"][0]["delta"] == {"content": "some"}
    assert last["error"]["code"] == "internal_error"
    assert engine.num_open == 0


def test_an_answer_cut_off_by_shutdown_is_no_short_answer(client: TestClient, engine: FakeEngine) -> None:
    engine.finish_reason = "cancelled"
    assert refused(client, 503)["code"] == "unavailable"
    assert stream(client)[-1]["error"]["code"] == "unavailable"


def test_truncated_answers_say_so(client: TestClient, engine: FakeEngine) -> None:
    engine.finish_reason = "length"
    assert ask(client)["choices"][0]["finish_reason"] == "length"
    engine.scripts["hi"] = CALL
    assert ask(client, tools=TOOLS)["choices"][0]["finish_reason"] == "length"

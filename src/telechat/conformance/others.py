"""Checks of the routes beside chat: text completions, embeddings, responses. A server may lack them."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

from telechat.conformance.api import QUESTION, Api, read_stream
from telechat.conformance.basics import check_usage
from telechat.conformance.check import Check, expect, pick, shown

COMPLETIONS, EMBEDDINGS, RESPONSES = "/v1/completions", "/v1/embeddings", "/v1/responses"


def _complete(api: Api, **fields: Any) -> Any:
    body = {"model": api.model, "prompt": "Soy sauce is", "max_tokens": 8, "temperature": 0, **fields}
    return api.json(api.optional(COMPLETIONS, body))


def completions_shape(api: Api) -> None:
    answer = _complete(api)
    expect(pick(answer, "object") == "text_completion", f"object is {shown(answer['object'])}")
    expect(isinstance(pick(answer, "choices", 0, "text"), str), "choices.0.text is no text")
    check_usage(pick(answer, "usage"))


def completions_list(api: Api) -> None:
    choices = pick(_complete(api, prompt=["Soy sauce is", "Rice is"]), "choices")
    indices = [pick(choice, "index") for choice in choices]
    expect(sorted(indices) == [0, 1], f"two prompts give choices with the indices {indices}")


def completions_echo(api: Api) -> None:
    text = pick(_complete(api, echo=True), "choices", 0, "text")
    expect(text.startswith("Soy sauce is"), f"echo gives {shown(text)}")


def completions_stream(api: Api) -> None:
    body = {"model": api.model, "prompt": "Soy sauce is", "max_tokens": 8, "temperature": 0, "stream": True}
    answer = api.optional(COMPLETIONS, body)
    expect(answer.status_code == 200, f"HTTP {answer.status_code}: {shown(answer.text)}")
    stream = read_stream(answer.headers, answer.content)
    expect(stream.is_done, "the last event is not data: [DONE]")
    choices = [choice for event in stream.events for choice in pick(event, "choices")]
    streamed = "".join(pick(choice, "text") for choice in choices)
    whole = pick(_complete(api), "choices", 0, "text")
    expect(streamed == whole, f"streamed {shown(streamed)}, whole {shown(whole)}")


def _embed(api: Api, **fields: Any) -> Any:
    return api.json(api.optional(EMBEDDINGS, {"model": api.model, "input": QUESTION, **fields}))


def embeddings_shape(api: Api) -> None:
    answer = _embed(api)
    expect(pick(answer, "object") == "list", f"object is {shown(answer['object'])}")
    vector = pick(answer, "data", 0, "embedding")
    sound = isinstance(vector, list) and bool(vector)
    expect(
        sound and all(isinstance(value, int | float) for value in vector), "embedding is no list of numbers"
    )
    expect(pick(answer, "usage", "prompt_tokens") > 0, "usage counts no tokens")


def embeddings_base64(api: Api) -> None:
    plain = pick(_embed(api, encoding_format="float"), "data", 0, "embedding")
    encoded = pick(_embed(api, encoding_format="base64"), "data", 0, "embedding")
    expect(isinstance(encoded, str), "encoding_format base64 gives no text")
    data = base64.b64decode(encoded)
    expect(len(data) == 4 * len(plain), f"{len(data)} bytes for {len(plain)} numbers")
    values = struct.unpack(f"<{len(plain)}f", data)
    close = all(
        math.isclose(one, two, rel_tol=1e-3, abs_tol=1e-4) for one, two in zip(values, plain, strict=True)
    )
    expect(close, "base64 holds other numbers than the list")


def embeddings_list(api: Api) -> None:
    data = pick(_embed(api, input=[QUESTION, "Rice"]), "data")
    indices = [pick(entry, "index") for entry in data]
    expect(indices == [0, 1], f"two inputs give the indices {indices}")


def _respond(api: Api, **fields: Any) -> Any:
    return api.json(api.optional(RESPONSES, _response_body(api, **fields)))


def _response_body(api: Api, **fields: Any) -> dict[str, Any]:
    return {"model": api.model, "input": QUESTION, "max_output_tokens": 16, "temperature": 0, **fields}


def _output_text(answer: Any) -> str:
    messages = [item for item in pick(answer, "output") if pick(item, "type") == "message"]
    expect(bool(messages), "output holds no message")
    part = pick(messages[0], "content", 0)
    expect(pick(part, "type") == "output_text", f"the type of the content is {shown(part['type'])}")
    return str(pick(part, "text"))


def responses_shape(api: Api) -> None:
    answer = _respond(api)
    expect(pick(answer, "object") == "response", f"object is {shown(answer['object'])}")
    status = pick(answer, "status")
    expect(status in ("completed", "incomplete"), f"status is {shown(status)}")
    expect(
        _output_text(answer) == pick(api.plain, "choices", 0, "message", "content"), "the text is not chat's"
    )
    usage = pick(answer, "usage")
    total = pick(usage, "input_tokens") + pick(usage, "output_tokens")
    expect(total == pick(usage, "total_tokens"), f"usage does not add up: {shown(usage)}")


def responses_stream(api: Api) -> None:
    answer = api.optional(RESPONSES, _response_body(api, stream=True))
    expect(answer.status_code == 200, f"HTTP {answer.status_code}: {shown(answer.text)}")
    events = _named_events(answer.text)
    kinds = [kind for kind, _ in events]
    expect(kinds[:1] == ["response.created"], f"the first event is {shown(kinds[:1])}")
    expect(kinds[-1] in ("response.completed", "response.incomplete"), f"the last event is {kinds[-1]!r}")
    for kind, data in events:
        expect(pick(data, "type") == kind, f"the event {kind} has the type {shown(data['type'])}")
    numbers = [pick(data, "sequence_number") for _, data in events]
    expect(numbers == sorted(set(numbers)), f"sequence numbers are {shown(numbers)}")
    deltas = [pick(data, "delta") for kind, data in events if kind == "response.output_text.delta"]
    whole = _output_text(pick(events[-1][1], "response"))
    expect("".join(deltas) == whole, "the deltas are not the text of the whole")


def _named_events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "event" in fields:
            found.append((fields["event"], json.loads(fields.get("data", "null"))))
    expect(bool(found), "the stream has no named events")
    return found


CHECKS = (
    Check("completions-shape", "LlamaIndex, Dify", "text completions cannot be read", completions_shape),
    Check("completions-list", "LangChain", "only one of several prompts is answered", completions_list),
    Check("completions-echo", "evaluation tools", "prompts are not repeated", completions_echo),
    Check("completions-stream", "LlamaIndex, Dify", "streams of text cannot be read", completions_stream),
    Check("embeddings-shape", "LangChain, Dify", "embeddings cannot be read", embeddings_shape),
    Check("embeddings-base64", "openai-python", "its default encoding is not given", embeddings_base64),
    Check("embeddings-list", "LangChain, LlamaIndex", "documents get one another's vectors", embeddings_list),
    Check("responses-shape", "openai-python, agents", "responses cannot be read", responses_shape),
    Check(
        "responses-stream", "openai-python, agents", "events of responses cannot be read", responses_stream
    ),
)

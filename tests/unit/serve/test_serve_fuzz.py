"""Whatever a request says, no route answers with a 5xx: before a fake engine, and before a real one."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tests.unit.serve.serve_fakes import FakeEngine
from tests.unit.serve.test_serve_limits import EMBEDDINGS, GENERATING, url

from telechat.engine import LLM, AsyncEngine
from telechat.serve.app import create_app
from telechat.serve.settings import ServeSettings

pytestmark = pytest.mark.timeout(280)

JSON = {"Content-Type": "application/json"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SAMPLING: Mapping[str, Any] = {"temperature": 0.5, "top_p": 0.9, "seed": 1, "max_tokens": 3}
CHAT = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "user", "content": "hi"},
    ],
    **SAMPLING,
    "stop": ["x"],
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [TOOL],
    "tool_choice": "auto",
    "logit_bias": {"3": 1.5},
    "stream": True,
    "stream_options": {"include_usage": True},
    "user": "me",
}
TGI = {
    "max_new_tokens": 3,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "seed": 1,
    "stop": ["x"],
    "details": True,
}
# Richer bodies than the routes need, so that a change somewhere in them reaches more code.
BODIES: dict[str, Any] = {
    **GENERATING,
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": ["hi", "ho"], **SAMPLING, "echo": True, "logprobs": 2, "stop": "x", "n": 2},
    "/v1/responses": {"input": [{"role": "user", "content": "hi"}], "instructions": "s", "stream": True},
    "/telechat/gptDialog/v2": {"dialog": [{"role": "user", "content": "hi"}], "top_k": 3, "top_p": 0.5},
    "/generate": {"inputs": "hi", "parameters": TGI, "stream": False},
    "/generate_stream": {"prompt": "hi", **SAMPLING, "stream": True},
    EMBEDDINGS: {"input": ["hi", [104, 105]], "encoding_format": "base64"},
    "/tokenize": {"messages": [{"role": "user", "content": "hi"}]},
    "/detokenize": {"tokens": [104, 105]},
}

RAW = [
    b"",
    b"\xff\xfe\x00",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"messages": "\\ud800", "inputs": "\\ud800", "prompt": "\\udfff", "dialog": "\\ud800"}',
    b'{"messages": [{"role": "user", "content": "\xc3\x28"}], "inputs": "\xc3\x28"}',
    b'{"inputs": "hi", "inputs": "ho", "messages": [], "prompt": []}',
    b"\xef\xbb\xbf{}",
]
SPECIAL = [
    "<_user>",
    "<_bot>",
    "<_end>",
    "<_start>",
    "<_system>",
    "<tool_call>",
    "</tool_call>",
    "<|x|>",
    "\x00",
]
ODD = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 2, 2**31, 2**63 - 1, 2**63, -(2**63), 10**60, 0.0, -0.0, 1e-300, 1e308])
    | st.sampled_from([float("nan"), float("inf"), -float("inf")])
    | st.floats()
    | st.integers()
    | st.text(max_size=20)
    | st.sampled_from([*SPECIAL, "", "auto", "none", "user", "text", "json_object", "\ud800", "好" * 400])
)
VALUES = st.recursive(
    ODD,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=6) | st.sampled_from(["role", "content", "type", "text", "name", "stream"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values within a body."""
    if path:
        yield path
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in entries:
        yield from places(inner, (*path, key))


def changed(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The body with another value at one place."""
    body = copy.deepcopy(body)
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return body


@pytest.fixture(scope="module", params=["fake", "real"])
def service(request: pytest.FixtureRequest, tiny_model_folder: Path) -> Iterator[TestClient]:
    """Clients of both kinds of engine; the real one has so short a context that answers are short."""
    if request.param == "fake":
        yield TestClient(create_app(FakeEngine(), ServeSettings()), raise_server_exceptions=False)
        return
    # Named as the fake, because the table's paths name it.
    chosen = ServeSettings(served_model_name="fake")
    engine = AsyncEngine(LLM(tiny_model_folder, max_model_len=128))
    with TestClient(create_app(engine, chosen), raise_server_exceptions=False) as client:
        yield client
        assert engine.num_pending == 0 and engine.is_alive
    engine.close()


def check(client: TestClient, path: str, content: bytes) -> None:
    """No 5xx, neither as a status nor as an event, and an answer that ends."""
    answer = client.post(url(path), content=content, headers=JSON)
    assert answer.status_code < 500, (path, content[:500], answer.text[:500])
    assert "internal_error" not in answer.text, (path, content[:500], answer.text[:500])


def dumped(value: Any) -> bytes:
    """JSON with NaN and Infinity; half surrogate pairs as escapes."""
    return json.dumps(value).encode()


@pytest.mark.parametrize("path", BODIES)
def test_what_is_no_json_or_not_ours(service: TestClient, path: str) -> None:
    for content in RAW:
        check(service, path, content)


@pytest.mark.parametrize("path", BODIES)
def test_special_tokens_in_every_field(service: TestClient, path: str) -> None:
    for place in places(BODIES[path]):
        for text in (SPECIAL[2], "".join(SPECIAL)):
            check(service, path, dumped(changed(BODIES[path], place, text)))


@pytest.mark.parametrize("path", BODIES)
def test_odd_values_anywhere(service: TestClient, path: str) -> None:
    body = BODIES[path]
    found = list(places(body))

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(st.tuples(st.sampled_from(found), VALUES), min_size=1, max_size=2))
    def run(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
        made = changed(body, *changes[0])
        if len(changes) > 1 and changes[1][0][0] != changes[0][0][0]:
            made = changed(made, *changes[1])
        check(service, path, dumped(made))

    run()


@pytest.mark.parametrize("path", BODIES)
def test_bytes_lost_and_changed(service: TestClient, path: str) -> None:
    text = dumped(BODIES[path])

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.integers(0, len(text) - 1), st.binary(max_size=4), st.integers(0, 4))
    def run(where: int, put: bytes, num_lost: int) -> None:
        check(service, path, text[:where] + put + text[where + num_lost :])

    run()

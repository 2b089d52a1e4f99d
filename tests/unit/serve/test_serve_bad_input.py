"""No request body, however odd, is answered with a 5xx."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.testclient import TestClient
from tests.unit.serve.conftest import MakeClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.serve.app import create_app
from telechat.serve.openai.chat_fields import ChatRequest
from telechat.serve.openai.completion_fields import CompletionRequest
from telechat.serve.openai.embeddings import EmbeddingRequest
from telechat.serve.openai.response_fields import ResponseRequest
from telechat.serve.openai.tokens import DetokenizeRequest, TokenizeRequest
from telechat.serve.settings import ServeSettings

CHAT = "/v1/chat/completions"
DIALOGS = ("/telechat/gptDialog/v2", "/telechat/gptDialog/v4")
JSON = {"Content-Type": "application/json"}

ODD_BODIES = [
    b"",
    b"\xff\xfe",
    b"{",
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}',
    b'{"messages": [{"role": "user", "content": "hi"}], "top_p": -Infinity}',
    b'{"messages": [{"role": "user", "content": "hi"}], "seed": ' + b"9" * 5000 + b"}",
    b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": ' + b"9" * 400 + b"5.5}",
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function", "function": '
    b'{"name": "f", "parameters": ' + b'{"a":' * 70 + b"1" + b"}" * 70 + b"}}]}",
]


# A body that each of OpenAI's routes answers.
GOOD: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    CHAT: (ChatRequest, {"messages": [{"role": "user", "content": "hi"}]}),
    "/v1/completions": (CompletionRequest, {"prompt": "hi"}),
    "/v1/responses": (ResponseRequest, {"input": "hi"}),
    "/v1/embeddings": (EmbeddingRequest, {"input": "hi"}),
    "/tokenize": (TokenizeRequest, {"prompt": "hi"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [104]}),
}


@pytest.mark.parametrize("route", GOOD)
@pytest.mark.parametrize("body", ODD_BODIES, ids=range(len(ODD_BODIES)))
def test_odd_bodies_are_400_in_our_shape(client: TestClient, body: bytes, route: str) -> None:
    answer = client.post(route, content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert len(answer.content) < 1000


@pytest.mark.parametrize("route", DIALOGS)
@pytest.mark.parametrize("body", ODD_BODIES, ids=range(len(ODD_BODIES)))
def test_odd_dialogs(client: TestClient, route: str, body: bytes) -> None:
    answer = client.post(route, content=body, headers=JSON)
    assert answer.status_code in (200, 422)
    if answer.status_code == 422:
        assert set(answer.json()) == {"detail", "error"}
    else:
        assert answer.json()["code"] == "10301"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"]
)
def test_only_json_is_read(client: TestClient, kind: str) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}]})
    answer = client.post(CHAT, content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]["message"]
    assert client.post(DIALOGS[0], content=body, headers={"Content-Type": kind}).status_code == 422


@pytest.mark.parametrize("declared", [True, False])
def test_large_bodies_are_refused(make_client: MakeClient, declared: bool) -> None:
    client = make_client(max_body_bytes=1000)
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}]}).encode()
    content = body if declared else iter([body[:500], body[500:]])
    answer = client.post(CHAT, content=content, headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert "1000" in answer.json()["error"]["message"]


def test_a_content_length_without_end(client: TestClient) -> None:
    answer = client.post(CHAT, content=b"{}", headers={**JSON, "Content-Length": "9" * 4301})
    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/nope", "/v1/models/nope", "/v1/models/a/b"])
def test_unknown_paths(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_wrong_method(client: TestClient) -> None:
    answer = client.get(CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**60), max_value=10**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["<_user>", "<_end>", "<tool_call>", "user", "function", "auto", "required", "json_object", "\x00"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": VALUES}
    ),
    max_size=3,
)


FUZZED = TestClient(create_app(FakeEngine(), ServeSettings()), raise_server_exceptions=False)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_in_any_field(data: Any) -> None:
    route = data.draw(st.sampled_from(sorted(GOOD)))
    model, good = GOOD[route]
    names = data.draw(st.lists(st.sampled_from(sorted(model.model_fields)), max_size=4, unique=True))
    body = {**good, **{name: data.draw(VALUES) for name in names}}
    if "messages" in good and data.draw(st.booleans()):
        body["messages"] = data.draw(MESSAGES)
    answer = FUZZED.post(route, json=body)
    assert answer.status_code in (200, 400, 404), answer.text
    # A stream that fails half-way has status 200.
    assert "internal_error" not in answer.text
    dialog = {"dialog": data.draw(VALUES), "top_k": data.draw(VALUES), "temperature": data.draw(VALUES)}
    for route in DIALOGS:
        assert FUZZED.post(route, json=dialog).status_code == 200

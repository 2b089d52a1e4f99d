"""Vectors of texts, and tokens of texts, over a scripted engine."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.serve.conftest import MakeClient
from tests.unit.serve.serve_fakes import MAX_MODEL_LEN, FakeEngine

from telechat.engine import EngineDiedError
from telechat.errors import ContextLengthError

URL = "/v1/embeddings"


def embed(client: TestClient, given: Any = "abc", **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"input": given, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_vector(client: TestClient) -> None:
    assert embed(client, model="fake") == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [1.0, 0.0]}],
        "model": "fake",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


@pytest.mark.parametrize(
    ("given", "lengths"),
    [("abc", [3]), (["a", "bcd"], [1, 3]), ([97, 98], [2]), ([[97], [98, 99]], [1, 2])],
)
def test_forms_of_input(client: TestClient, given: Any, lengths: list[int]) -> None:
    answer = embed(client, given, normalize=False)
    assert [entry["embedding"] for entry in answer["data"]] == [[float(length), 0.0] for length in lengths]
    assert [entry["index"] for entry in answer["data"]] == list(range(len(lengths)))
    assert answer["usage"]["prompt_tokens"] == sum(lengths)


def test_pooling_and_base64(client: TestClient) -> None:
    assert embed(client, pooling="last", normalize=False)["data"][0]["embedding"] == [0.0, 99.0]
    text = embed(client, encoding_format="base64", normalize=False)["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(text)) == (3.0, 0.0)
    assert embed(client, encoding_format="float", dimensions=2)["data"][0]["embedding"] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": {}}, "input"),
        ({"input": ["a", None]}, "input"),
        ({"input": [-5]}, "input"),
        ({"dimensions": 3}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"pooling": "cls"}, "pooling"),
    ],
)
def test_a_bad_field_is_named(client: TestClient, fields: dict[str, Any], param: str) -> None:
    answer = client.post(URL, json={"input": "abc", **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [(ContextLengthError(9, 8), 400, "context_length_exceeded"), (EngineDiedError("x"), 503, "unavailable")],
)
def test_what_the_engine_refuses(
    make_client: MakeClient, engine: FakeEngine, refusal: Exception, status: int, code: str
) -> None:
    client = make_client(max_pending_requests=1)
    engine.refusal = refusal
    for _ in range(2):
        answer = client.post(URL, json={"input": ["a", "b"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_tokens_of_a_text(client: TestClient) -> None:
    answer = client.post("/tokenize", json={"prompt": "h<_end>"}).json()
    assert answer["tokens"] == [ord(character) for character in "h<_end>"]
    assert (answer["count"], answer["max_model_len"], answer["token_strs"]) == (7, MAX_MODEL_LEN, None)


def test_tokens_of_a_conversation(client: TestClient, engine: FakeEngine) -> None:
    messages = [{"role": "developer", "content": "A"}, {"role": "user", "content": "好"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"messages": messages, "tools": tools, "return_token_strs": True}
    answer = client.post("/tokenize", json=body).json()
    assert answer["token_strs"] == ["A", "好"]
    assert engine.llm.tokenizer.messages[0] == {"role": "system", "content": "A"}
    assert engine.llm.tokenizer.tools == tools
    without = client.post("/tokenize", json={**body, "add_generation_prompt": False}).json()
    assert without["token_strs"] == ["A", "好", "~"]
    # What a chat request would refuse as too long can still be counted.
    long = [{"role": "user", "content": "x" * (MAX_MODEL_LEN + 1)}]
    assert client.post("/tokenize", json={"messages": long}).json()["count"] == MAX_MODEL_LEN + 1


def test_text_of_tokens(client: TestClient) -> None:
    assert client.post("/detokenize", json={"tokens": [104, 0x597D]}).json() == {"prompt": "h好"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "refuse me"}]}, "messages"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**30]}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
    ],
)
def test_what_cannot_be_read(client: TestClient, path: str, body: Any, param: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param

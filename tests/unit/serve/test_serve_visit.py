"""What every request goes through besides limits of keys: prompt length, deadline, request ids."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient
from tests.unit.serve.conftest import MakeClient
from tests.unit.serve.serve_fakes import FakeEngine
from tests.unit.serve.test_serve_limits import GENERATING

from telechat.errors import ConfigError
from telechat.serve.settings import ServeSettings

CHAT = "/v1/chat/completions"


def test_a_whole_answer_that_takes_too_long(make_client: MakeClient, engine: FakeEngine) -> None:
    engine.scripts["hi"] = ("a", 1000.0)
    answer = make_client(request_seconds=0.2).post(CHAT, json=GENERATING[CHAT])
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert "0.2 seconds" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert engine.num_open == 0


def test_a_stream_that_takes_too_long_ends_with_an_error(make_client: MakeClient, engine: FakeEngine) -> None:
    engine.scripts["hi"] = ("a", 1000.0)
    answer = make_client(request_seconds=0.2).post(CHAT, json={**GENERATING[CHAT], "stream": True})
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert json.loads(events[-1])["error"]["code"] == "timeout"
    assert '"a"' in answer.text
    assert engine.num_open == 0


def test_an_answer_in_time(make_client: MakeClient) -> None:
    assert make_client(request_seconds=60).post(CHAT, json=GENERATING[CHAT]).status_code == 200


def test_long_prompts_are_refused(make_client: MakeClient) -> None:
    client = make_client(max_prompt_tokens=5)
    short = {"messages": [{"role": "user", "content": "hello"}]}
    long = {"messages": [{"role": "user", "content": "hello!"}]}
    assert client.post(CHAT, json=short).status_code == 200
    answer = client.post(CHAT, json=long)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "6 tokens" in answer.json()["error"]["message"] and "5" in answer.json()["error"]["message"]


@pytest.mark.parametrize("fields", [{"max_prompt_tokens": 0}, {"request_seconds": 0.0}])
def test_limits_are_checked(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        ServeSettings(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [("my-id_1.2:3", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ('a"b', False)],
)
def test_request_ids(client: TestClient, given: str, is_kept: bool) -> None:
    answer = client.get("/v1/models", headers={"X-Request-Id": given})
    assert (answer.headers["x-request-id"] == given) is is_kept
    assert len(answer.headers["x-request-id"]) <= 64


def test_every_answer_has_an_id_of_its_own(client: TestClient) -> None:
    paths = ("/v1/models", "/nope", "/health")
    ids = {client.get(path).headers["x-request-id"] for path in paths for _ in range(3)}
    assert len(ids) == 9

"""Limits per key: what is counted, over which time, and what a refused client is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tests.unit.serve.asgi_calls import Call, until
from tests.unit.serve.conftest import MakeClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.engine import QueueFullError
from telechat.errors import ConfigError
from telechat.serve.app import create_app
from telechat.serve.auth import Key, KeyRing
from telechat.serve.errors import ApiError
from telechat.serve.limits import WINDOW_SECONDS, Grant, Limits, Window
from telechat.serve.settings import ServeSettings

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
# Every route that makes the model work, with a body whose prompt has at least two tokens.
TRITON = {
    "generate": {"text_input": "hi"},
    "generate_stream": {"text_input": "hi"},
    "infer": {
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "UINT32", "data": [104, 105]}],
        "outputs": [{"name": "y"}],
    },
}
GENERATING: dict[str, Any] = {
    CHAT: {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/telechat/gptDialog/v2": {"dialog": HI},
    "/telechat/gptDialog/v4": {"dialog": HI},
    "/generate": {"inputs": "hi"},
    "/generate_stream": {"inputs": "hi"},
    "/": {"inputs": "hi"},
    "/infer": {"inputs": "hi"},
    "/infer_token": {"input_id": [104, 105]},
    **{f"/v2/models/{{name}}/{verb}": body for verb, body in TRITON.items()},
    **{f"/v2/models/{{name}}/versions/{{version}}/{verb}": body for verb, body in TRITON.items()},
}
# Routes that do other work of the model, and POST routes that do none.
EMBEDDINGS = "/v1/embeddings"
IDLE = {"/tokenize", "/detokenize"}


def url(path: str) -> str:
    """The path with a model's name."""
    return path.format(name="fake", version="1")


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused(grant: Grant) -> ApiError:
    with pytest.raises(ApiError) as caught:
        grant.enter()
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.kind == "rate_limit_error"
    return caught.value


def test_requests_in_a_minute() -> None:
    clock = Clock()
    grant = Grant("a", Limits(requests_per_minute=2), clock=clock)
    grant.enter()
    clock.now += 20
    grant.enter()
    assert refused(grant).headers["Retry-After"] == "40"
    clock.now += 39
    assert refused(grant).headers["Retry-After"] == "1"
    clock.now += 1
    grant.enter()
    assert refused(grant).headers["Retry-After"] == "20"


def test_tokens_in_a_minute() -> None:
    clock = Clock()
    grant = Grant("a", Limits(tokens_per_minute=100), clock=clock)
    grant.enter()
    grant.check_prompt(60)
    grant.count_tokens(60)
    with pytest.raises(ApiError) as caught:
        grant.check_prompt(41)
    assert caught.value.headers["Retry-After"] == "60"
    clock.now += 10
    # An answer under way is not cut; the next request pays.
    grant.count_tokens(300)
    refused(grant)
    clock.now += 50
    assert refused(grant).headers["Retry-After"] == "10"
    clock.now += 10
    grant.enter()
    grant.check_prompt(100)


def test_a_prompt_that_can_never_fit_is_not_worth_a_retry() -> None:
    grant = Grant("a", Limits(tokens_per_minute=100))
    with pytest.raises(ApiError) as caught:
        grant.check_prompt(101)
    assert caught.value.status == 429
    assert caught.value.headers == {"x-should-retry": "false"}


def test_requests_at_once() -> None:
    grant = Grant("a", Limits(concurrency=2))
    grant.enter()
    grant.enter()
    assert refused(grant).headers["Retry-After"] == "1"
    grant.leave()
    grant.enter()


def test_a_refused_request_counts_nothing() -> None:
    clock = Clock()
    grant = Grant("a", Limits(requests_per_minute=2, concurrency=1), clock=clock)
    grant.enter()
    for _ in range(5):
        refused(grant)
    grant.leave()
    grant.enter()
    grant.leave()
    assert "2 requests" in refused(grant).message


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60),
    st.floats(0, 120),
)
def test_the_window_never_says_less_than_the_last_minute(steps: list[tuple[float, int]], rest: float) -> None:
    """And no more than half a second longer than that."""
    clock = Clock()
    window = Window(clock)
    added: list[tuple[float, int]] = []
    for pause, amount in steps:
        clock.now += pause
        window.add(amount)
        added.append((clock.now, amount))
    clock.now += rest

    def since(moment: float) -> int:
        return sum(amount for when, amount in added if when > moment)

    assert since(clock.now - WINDOW_SECONDS + 1e-5) <= window.total
    assert window.total <= since(clock.now - WINDOW_SECONDS - 0.5)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), min_size=1, max_size=30), st.integers(0, 99))
def test_after_the_told_seconds_there_is_room(steps: list[tuple[float, int]], most: int) -> None:
    clock = Clock()
    window = Window(clock)
    for pause, amount in steps:
        clock.now += pause
        window.add(amount)
    clock.now += window.seconds_until(most)
    assert window.total <= most


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "concurrency"])
def test_limits_are_at_least_one(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Limits(**{name: 0})


def keyed_client(engine: FakeEngine, **limits: int) -> TestClient:
    ring = KeyRing([Key.of("alice", "sk-a", Limits(**limits)), Key.of("bob", "sk-b")])
    return TestClient(create_app(engine, ServeSettings(), ring=ring), raise_server_exceptions=False)


def post(client: TestClient, path: str, key: str) -> Any:
    return client.post(url(path), json=GENERATING[path], headers={"Authorization": f"Bearer {key}"})


def test_the_table_of_generating_routes_is_whole(client: TestClient) -> None:
    """A new route must be limited like the others, so it stands in the table, or is known to do no work."""
    paths = client.get("/openapi.json").json()["paths"]
    posts = {path for path, operations in paths.items() if "post" in operations}
    assert posts - {EMBEDDINGS} - IDLE == set(GENERATING)


@pytest.mark.parametrize("path", GENERATING)
def test_every_route_counts_requests(engine: FakeEngine, path: str) -> None:
    client = keyed_client(engine, requests_per_minute=2)
    for _ in range(2):
        assert post(client, path, "sk-a").status_code == 200
    answer = post(client, path, "sk-a")
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert post(client, path, "sk-b").status_code == 200
    assert engine.tenant == "bob"


@pytest.mark.parametrize("path", GENERATING)
def test_every_route_counts_tokens(engine: FakeEngine, path: str) -> None:
    """The fake answers with six tokens: with the prompt's, the limit is passed by one request."""
    client = keyed_client(engine, tokens_per_minute=7)
    assert post(client, path, "sk-a").status_code == 200
    answer = post(client, path, "sk-a")
    assert answer.status_code == 429
    assert "tokens" in answer.text
    assert post(client, path, "sk-b").status_code == 200


@pytest.mark.parametrize("path", GENERATING)
def test_every_route_counts_requests_at_once(engine: FakeEngine, path: str) -> None:
    engine.scripts["hi"] = ("a", 1000.0)
    ring = KeyRing([Key.of("alice", "sk-a", Limits(concurrency=1)), Key.of("bob", "sk-b")])

    async def scenario() -> None:
        app = create_app(engine, ServeSettings(), ring=ring)

        def call(key: str) -> Call:
            return Call(app, url(path), GENERATING[path], {"Authorization": f"Bearer {key}"})

        first, other = call("sk-a"), call("sk-b")
        tasks = [asyncio.create_task(first.run()), asyncio.create_task(other.run())]
        await until(lambda: engine.num_open == 2)
        second = call("sk-a")
        await second.run()
        assert (second.status, second.headers["retry-after"]) == (429, "1")
        first.leave()
        await tasks[0]
        other.leave()
        await tasks[1]
        engine.scripts["hi"] = ("a",)
        third = call("sk-a")
        await third.run()
        assert third.status == 200

    asyncio.run(scenario())


def test_embeddings_count_requests_and_tokens(engine: FakeEngine) -> None:
    headers = {"Authorization": "Bearer sk-a"}
    for limits in ({"requests_per_minute": 1}, {"tokens_per_minute": 3}):
        client = keyed_client(engine, **limits)
        for status in (200, 429):
            answer = client.post(EMBEDDINGS, json={"input": "hi"}, headers=headers)
            assert answer.status_code == status


def test_limits_without_a_key_are_none(make_client: MakeClient, engine: FakeEngine) -> None:
    client = make_client()
    for _ in range(20):
        assert client.post(CHAT, json=GENERATING[CHAT]).status_code == 200
    assert engine.tenant == ""


@pytest.mark.parametrize("path", ["/v1/completions", EMBEDDINGS])
def test_prompts_that_do_not_fit_together_cost_nothing(engine: FakeEngine, path: str) -> None:
    client = keyed_client(engine, tokens_per_minute=100)
    headers = {"Authorization": "Bearer sk-a"}
    name = "input" if path == EMBEDDINGS else "prompt"
    refused = client.post(path, json={name: ["x" * 40] * 4}, headers=headers)
    # Waiting would not help: together they are more than the key has in a minute.
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert client.post(path, json={name: ["x" * 40] * 2}, headers=headers).status_code == 200


def test_what_the_engine_refuses_costs_no_tokens(engine: FakeEngine) -> None:
    client = keyed_client(engine, tokens_per_minute=7)
    engine.refusal = QueueFullError("full")
    for _ in range(10):
        assert post(client, CHAT, "sk-a").json()["error"]["code"] == "queue_full"
    engine.refusal = None
    assert post(client, CHAT, "sk-a").status_code == 200

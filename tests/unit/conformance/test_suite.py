"""The checks find each fault of a broken server, and none in a sound one."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from starlette.testclient import TestClient
from tests.e2e.broken_api import FAULTS, KEY, MODEL, BrokenApi

from telechat.conformance.api import Api
from telechat.conformance.check import Check, FailedError, Outcome, pick
from telechat.conformance.suite import CHECKS, run_checks


class ThroughClient(httpx.BaseTransport):
    """Requests to an application in this process, by Starlette's own client."""

    def __init__(self, client: TestClient) -> None:
        self._client = client

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._client.request(
            request.method,
            str(request.url.copy_with(scheme="http")),
            content=request.read(),
            headers=request.headers,
        )
        body = httpx.ByteStream(answer.content)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=body)


@pytest.fixture
def client_of() -> Iterator[list[TestClient]]:
    opened: list[TestClient] = []
    yield opened
    for client in opened:
        client.close()


def outcomes(fault: str | None, opened: list[TestClient], *names: str) -> dict[str, Outcome]:
    """What the checks find; only those with these names where some are given."""
    client = TestClient(BrokenApi(fault).app(), raise_server_exceptions=False)
    opened.append(client)
    api = Api("http://127.0.0.1", key=KEY, transport=ThroughClient(client))
    chosen: tuple[Check[Api], ...] = tuple(check for check in CHECKS if not names or check.name in names)
    return {outcome.name: outcome for outcome in run_checks(api, chosen)}


def test_a_sound_server_passes_all(client_of: list[TestClient]) -> None:
    found = outcomes(None, client_of)
    wrong = {name: outcome.detail for name, outcome in found.items() if outcome.result != "passed"}
    assert wrong == {}
    assert len(found) == len(CHECKS) >= 60


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_check(client_of: list[TestClient], fault: str) -> None:
    name = FAULTS[fault]
    found = outcomes(fault, client_of, name)
    assert found[name].result == "failed", f"{name} did not find: {fault}"
    assert found[name].detail and not found[name].detail.startswith("the answer has another shape")


def test_names_are_unique_and_say_who_needs_them() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.needed_by and check.why for check in CHECKS)


def test_the_model_is_the_first_one_listed(client_of: list[TestClient]) -> None:
    client = TestClient(BrokenApi().app())
    client_of.append(client)
    api = Api("http://127.0.0.1/v1/", key=KEY, transport=ThroughClient(client))
    assert (api.url, api.known_model, api.model, api.known_model) == ("http://127.0.0.1", None, MODEL, MODEL)
    assert Api("http://127.0.0.1", model="other").model == "other"


def test_pick_says_what_is_missing() -> None:
    assert pick({"a": [{"b": 3}]}, "a", 0, "b") == 3
    for value in ({}, {"a": []}, {"a": [{}]}, {"a": 3}, []):
        with pytest.raises(FailedError, match="the answer has no a"):
            pick(value, "a", 0, "b")


def test_answers_of_another_shape_fail() -> None:
    def empty(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=httpx.ByteStream(b"{}"))

    api = Api("http://127.0.0.1", model="m", transport=httpx.MockTransport(empty))
    found = {outcome.name: outcome.result for outcome in run_checks(api)}
    assert all(
        found[name] == "failed" for name in ("models-list", "chat-shape", "stream-done", "tools-named")
    )

"""The service in front of a fake engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.serve.app import create_app
from telechat.serve.settings import ServeSettings

MakeClient = Callable[..., TestClient]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_client(engine: FakeEngine) -> MakeClient:
    """A client of a service with the given settings; errors become answers, as in a real server."""

    def make(**settings: Any) -> TestClient:
        return TestClient(create_app(engine, ServeSettings(**settings)), raise_server_exceptions=False)

    return make


@pytest.fixture
def client(make_client: MakeClient) -> Iterator[TestClient]:
    yield make_client()

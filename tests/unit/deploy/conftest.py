"""The service's routes, in front of a fake engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.serve.app import create_app
from telechat.serve.settings import ServeSettings


@pytest.fixture
def client() -> Iterator[TestClient]:
    yield TestClient(create_app(FakeEngine(), ServeSettings()))

"""Schemathesis reads our OpenAPI document and sends what it allows and what it forbids; no 5xx comes back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.serve.app import create_app
from telechat.serve.settings import ServeSettings

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis, of the dev extra")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", create_app(FakeEngine(), ServeSettings()))
OPERATIONS: dict[str, Any] = {
    f"{found.ok().method.upper()} {found.ok().path}": found.ok() for found in SCHEMA.get_all_operations()
}


def test_all_operations_are_read() -> None:
    assert {"POST /v1/chat/completions", "POST /telechat/gptDialog/v4", "GET /metrics"} <= OPERATIONS.keys()
    assert len(OPERATIONS) > 15


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_operation_answers_with_a_5xx(name: str, mode: str) -> None:
    operation = OPERATIONS[name]
    kind = schemathesis.GenerationMode[mode]
    if mode == "NEGATIVE" and not list(operation.body):
        pytest.skip("it takes texts in its path at most, and no text is wrong")

    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(operation.as_strategy(kind))
    def run(case: Any) -> None:
        answer = case.call()
        assert answer.status_code < 500, (case.body, answer.text[:500])

    run()

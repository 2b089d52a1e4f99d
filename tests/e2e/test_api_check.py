"""Our own server passes every check of `telechat api-check`."""

from __future__ import annotations

import pytest
from tests.e2e.servers import API_KEY, RunningServer

from telechat.conformance.api import Api
from telechat.conformance.suite import CHECKS, run_checks

pytestmark = pytest.mark.e2e


def test_all_checks_pass(server: RunningServer) -> None:
    api = Api(server.url, key=API_KEY)
    try:
        outcomes = list(run_checks(api))
    finally:
        api.close()
    wrong = {outcome.name: outcome.detail for outcome in outcomes if outcome.result != "passed"}
    assert wrong == {}
    assert len(outcomes) == len(CHECKS)

"""Stopping several processes: how long they may take."""

from __future__ import annotations

from telechat.cli.processes import GRACE_SECONDS
from telechat.engine.engine_process import CLOSING_SECONDS
from telechat.serve.settings import ServeSettings


def test_a_server_may_finish_its_answers_before_force_is_used() -> None:
    """It lets answers finish for so long, then waits for its engine to close."""
    assert ServeSettings().shutdown_seconds + CLOSING_SECONDS < GRACE_SECONDS

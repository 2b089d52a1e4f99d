"""The outermost layer: every request is noted when it arrives and counted and logged when it is over.

Gives each answer an `X-Request-Id`, the client's own where it sent a sound one. Knows routes only by name.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from telechat.serve.access_log import AccessLog
from telechat.serve.metrics import Metrics
from telechat.serve.record import Record, record_of

ID_HEADER = b"x-request-id"
_SOUND_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
# What those who watch the service ask every few seconds; successes would fill the log.
_QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})
# The client went away before there was a status; the number is nginx's.
_CLIENT_CLOSED = 499


class Observer:
    """ASGI middleware.

    Args:
        app: what answers.
        metrics: counts.
        log: lines; None writes none.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log: AccessLog | None) -> None:
        self.app = app
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = record_of(scope)
        record.id = _request_id(scope)

        async def noting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message["headers"], (ID_HEADER, record.id.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, noting_send)
        except asyncio.CancelledError:
            # The service is ending and waits no longer.
            record.error = record.error or "cancelled"
            raise
        except Exception:
            record.error = record.error or "internal_error"
            record.status = record.status or 500
            raise
        finally:
            self._finish(scope, record)

    def _finish(self, scope: Scope, record: Record) -> None:
        record.status = record.status or _CLIENT_CLOSED
        record.is_abandoned = record.is_abandoned or record.status == _CLIENT_CLOSED
        seconds = time.monotonic() - record.started
        self._metrics.finish(
            _route(scope),
            record.status,
            seconds=seconds,
            is_cancelled=record.is_abandoned,
            has_failed=record.was_admitted and record.error is not None,
        )
        is_news = record.status >= 400 or scope["path"] not in _QUIET_PATHS
        if self._log is not None and is_news:
            self._log.put(log_line(record, seconds), record.prompts)


def _route(scope: Scope) -> str:
    """The path as its route declares it; "other" for what no route was found for, whatever was asked."""
    return str(getattr(scope.get("route"), "path_format", "other"))


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == ID_HEADER), b"")
    return given.decode("ascii") if _SOUND_ID.fullmatch(given) else secrets.token_hex(12)


def log_line(record: Record, seconds: float) -> dict[str, Any]:
    """The fields of a line of the access log; those that do not apply are left out."""
    when = datetime.fromtimestamp(record.started_at, UTC)
    line: dict[str, Any] = {
        "time": when.isoformat(timespec="milliseconds"),
        "id": record.id,
        "client": record.client,
        "key": record.grant.name if record.grant is not None else None,
        "method": record.method,
        "path": record.path[:200],
        "status": record.status,
        "seconds": round(seconds, 4),
        "error": record.error,
        "abandoned": record.is_abandoned or None,
    }
    if record.was_admitted:
        first = record.first_token_seconds
        line["adapter"] = record.adapter
        line["first_token_seconds"] = None if first is None else round(first, 4)
        line["prompt_tokens"] = record.num_prompt_tokens
        line["completion_tokens"] = record.num_completion_tokens
    return {name: value for name, value in line.items() if value is not None}

"""Answering the rows of a batch file by the service's own routes, many at a time, without a network.

Each row goes through the same application as a request over HTTP, so fields, defaults, refusals and answers
are the service's. Knows no files.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx

from telechat.serve.app import create_app
from telechat.serve.auth import KeyRing
from telechat.serve.batch_file import BatchRow, answered, failed
from telechat.serve.contract import ServiceEngine
from telechat.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

# Waiting rows for each that is computed, so that the batch stays full while answers are written.
_ROWS_PER_PLACE = 2
_MAX_ROW_BYTES = 1 << 30
# An engine that has died is started again; so often is a row asked again.
_MAX_TRIES = 3
_LOADING_SECONDS = 600.0
_POLL_SECONDS = 0.2

Answer = dict[str, Any]


def answer_batch(
    engine: ServiceEngine,
    rows: Sequence[BatchRow],
    on_answer: Callable[[Answer], None],
    *,
    max_batch_size: int,
    model_alias: str | None = None,
) -> None:
    """Answer `rows`; blocks until all are done.

    Args:
        engine: closing it is the caller's business.
        on_answer: called with each output row as soon as it is there, in any order.
        max_batch_size: answers that the engine computes at once.
        model_alias: a further name under which rows may ask for the model.
    """
    asyncio.run(_Batch(engine, on_answer, max_batch_size, model_alias).run(rows))


class _Batch:
    def __init__(
        self,
        engine: ServiceEngine,
        on_answer: Callable[[Answer], None],
        max_batch_size: int,
        model_alias: str | None,
    ) -> None:
        self._engine = engine
        self._on_answer = on_answer
        self._num_workers = max_batch_size * _ROWS_PER_PLACE
        self._model_alias = model_alias
        settings = ServeSettings(max_pending_requests=self._num_workers, max_body_bytes=_MAX_ROW_BYTES)
        self._app = create_app(engine, settings, ring=KeyRing())

    async def run(self, rows: Sequence[BatchRow]) -> None:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        waiting = iter(rows)
        async with httpx.AsyncClient(transport=transport, base_url="http://batch", timeout=None) as client:
            workers = [
                asyncio.create_task(self._work(client, waiting))
                for _ in range(min(self._num_workers, len(rows)))
            ]
            try:
                # Not a TaskGroup: what stops the batch, such as a full disk, is to arrive as it is.
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, client: httpx.AsyncClient, waiting: Iterator[BatchRow]) -> None:
        """Answer one waiting row after another."""
        for row in waiting:
            self._on_answer(await self._answer(client, row))

    async def _answer(self, client: httpx.AsyncClient, row: BatchRow) -> Answer:
        if row.problem is not None:
            return failed(row, "invalid_request", row.problem)
        body = dict(row.body)
        if body.get("model") is not None and body["model"] == self._model_alias:
            del body["model"]
        try:
            content = json.dumps(body).encode("utf-8")
        except ValueError as error:
            return failed(row, "invalid_request", f"body cannot be sent: {error}.")
        for left in reversed(range(_MAX_TRIES)):
            response = await client.post(
                row.url, content=content, headers={"Content-Type": "application/json"}
            )
            if response.status_code != 503 or not left or not await self._is_back():
                break
        request_id = response.headers.get("x-request-id") or f"req_{secrets.token_hex(12)}"
        return answered(row, response.status_code, request_id, _json(response))

    async def _is_back(self) -> bool:
        """Wait for an engine that is being started again."""
        waited = 0.0
        while not self._engine.is_alive and waited < _LOADING_SECONDS:
            await asyncio.sleep(_POLL_SECONDS)
            waited += _POLL_SECONDS
        return self._engine.is_alive


def _json(response: httpx.Response) -> Any:
    """The body of an answer; every route of ours answers in JSON."""
    return json.loads(response.content)

"""Answers that end when the client goes away.

A client that disconnects cancels the work done for it at once, also while it waits in a queue and nothing is
being sent; the engine then frees its place. Knows nothing of what is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from telechat.serve.record import record_of

T = TypeVar("T")

# Proxies give up connections on which nothing moves, commonly after a minute: a long prompt or a long tool
# call is no reason to.
IDLE_SECONDS = 15.0


async def run_while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects. Call it after the body was read.

    Raises:
        ClientDisconnect: the client went away first.
    """
    return await _race(request.receive, work)


async def _race(receive: Receive, work: Awaitable[T]) -> T:
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        # Wait for both: the work's own clean-up must be over before the request counts as finished.
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


class GeneratedResponse(Response):
    """A body produced piece by piece; the generator is always closed, however the answer ends.

    Args:
        pieces: chunks of the body. An exception from it cuts the connection, so that the client cannot take
            what arrived for the whole.
        headers: must hold the content type.
        on_close: called once the answer is over or the client has gone.
        when_idle: sent when nothing else has been for IDLE_SECONDS; empty for nothing.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        headers: Mapping[str, str],
        on_close: Callable[[], None],
        when_idle: bytes = b"",
    ) -> None:
        self._pieces = pieces
        self._on_close = on_close
        self._when_idle = when_idle
        self.status_code = 200
        self.background = None
        # Before there is a `body`: Starlette would announce its length.
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _race(receive, self._send_all(send))
        except ClientDisconnect:
            record_of(scope).is_abandoned = True
        finally:
            self._on_close()

    async def _send_all(self, send: Send) -> None:
        body = _Body(send)
        async with aclosing(self._pieces):
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            keeper = asyncio.ensure_future(body.fill_silence(self._when_idle)) if self._when_idle else None
            try:
                async for piece in self._pieces:
                    await body.send(piece)
            finally:
                if keeper is not None:
                    keeper.cancel()
                    await asyncio.gather(keeper, return_exceptions=True)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Body:
    """The body of a response on its way, which two may send pieces of."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = asyncio.Lock()
        self._num_sent = 0

    async def send(self, piece: bytes) -> None:
        """Send a piece, never into the middle of another."""
        async with self._lock:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self._num_sent += 1

    async def fill_silence(self, piece: bytes) -> None:
        """Send `piece` whenever nothing else was sent for a while; to be cancelled."""
        while True:
            num_before = self._num_sent
            await asyncio.sleep(IDLE_SECONDS)
            if self._num_sent == num_before:
                await self.send(piece)

"""The answers to one request as an asyncio program reads them.

Knows nothing of engines: what arrives is put in from outside, and what is no longer wanted is said outside.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from telechat.engine.outputs import Delta


class Stream(AsyncIterator[Delta]):
    """The answers to one prompt as they grow.

    Iterate once. Cancelling the task that waits, `aclose`, or dropping the stream ends the requests behind
    it, and their memory is free at the engine's next step.
    """

    def __init__(
        self, key: int, num_answers: int, cancel: Callable[[int], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.key = key
        self.loop = loop
        self._cancel = cancel
        self._inbox: deque[Delta | Exception] = deque()
        self._arrived = asyncio.Event()
        self._num_open = num_answers

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        if not self._inbox:
            if not self._num_open:
                raise StopAsyncIteration
            self._arrived.clear()
            try:
                await self._arrived.wait()
            except asyncio.CancelledError:
                self.cancel()
                raise
        item = self._inbox.popleft()
        if isinstance(item, Exception):
            self.cancel()
            raise item
        if item.finish_reason is not None:
            self._num_open -= 1
        return item

    def receive(self, item: Delta | Exception) -> None:
        """Called in the event loop's thread. What was under way to a cancelled stream is dropped."""
        if self._num_open:
            self._inbox.append(item)
            self._arrived.set()

    def cancel(self) -> None:
        """End what is still running. Deltas not yet read are dropped."""
        self._inbox.clear()
        if self._num_open:
            self._num_open = 0
            self._cancel(self.key)

    async def aclose(self) -> None:
        """As `cancel`; lets `contextlib.aclosing` end a stream."""
        self.cancel()

    def __del__(self) -> None:
        if self._num_open:
            self._cancel(self.key)


@dataclass
class OpenRequest:
    """A request not yet finished. The stream is held weakly: one that nobody holds any more ends it."""

    stream: weakref.ref[Stream]
    num_answers: int

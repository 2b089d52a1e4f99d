"""`AsyncEngine`: many requests at once from asyncio, worked on by one thread.

The worker thread alone touches the engine's queues and the model. Others leave it orders (add, cancel) and
are woken through their event loop, once per loop and step. Knows nothing of HTTP or conversations.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Sequence

from telechat.engine.llm import LLM
from telechat.engine.outputs import Delta
from telechat.engine.request import Request
from telechat.engine.sampling_params import SamplingParams
from telechat.errors import TelechatError

log = logging.getLogger(__name__)

DEFAULT_MAX_PENDING = 1024


class QueueFullError(TelechatError):
    """More requests are pending than the engine was told to hold."""


class EngineClosedError(TelechatError):
    """The engine has been closed."""


class EngineStepError(TelechatError):
    """The model failed while this request was running."""


class Stream(AsyncIterator[Delta]):
    """The answers to one prompt as they grow.

    Iterate once. Cancelling the task that waits, `aclose`, or dropping the stream ends the requests behind
    it, and their slots are free at the worker's next step.
    """

    def __init__(self, engine: AsyncEngine, requests: list[Request], loop: asyncio.AbstractEventLoop) -> None:
        self.requests = requests
        self.loop = loop
        self._engine = engine
        self._inbox: deque[Delta | Exception] = deque()
        self._arrived = asyncio.Event()
        self._num_open = len(requests)

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
        """Called in the event loop's thread."""
        self._inbox.append(item)
        self._arrived.set()

    def cancel(self) -> None:
        """End what is still running. Deltas not yet read are dropped."""
        self._inbox.clear()
        if self._num_open:
            self._num_open = 0
            self._engine.cancel(self)

    async def aclose(self) -> None:
        """As `cancel`; lets `contextlib.aclosing` end a stream."""
        self.cancel()

    def __del__(self) -> None:
        if self._num_open:
            self._engine.cancel(self)


class AsyncEngine:
    """Continuous batching behind asyncio.

    Args:
        llm: model and tokenizer. Its engine is this one's as well: until `close`, nothing else may use it.
        max_pending: requests running or waiting at once; one more is refused.
    """

    def __init__(self, llm: LLM, *, max_pending: int = DEFAULT_MAX_PENDING) -> None:
        self.llm = llm
        self.max_pending = max_pending
        self._engine = llm.engine
        self._changed = threading.Condition()
        # Streams are held weakly: one that nobody holds any more ends its requests (`Stream.__del__`).
        self._to_add: deque[tuple[weakref.ref[Stream], Request]] = deque()
        self._to_cancel: deque[Request] = deque()
        self._is_closing = False
        self._num_pending = 0
        self._streams: dict[Request, weakref.ref[Stream]] = {}  # touched by the worker only
        self._worker = threading.Thread(target=self._work, name="telechat-engine", daemon=True)
        self._worker.start()

    @property
    def num_pending(self) -> int:
        """Requests running or waiting."""
        return self._num_pending

    @property
    def num_running(self) -> int:
        """Requests that are being computed."""
        return len(self._engine.scheduler.running)

    def stream(self, prompt_ids: Sequence[int], params: SamplingParams) -> Stream:
        """Queue a prompt; must be called in an event loop. With n > 1 the answers' deltas come interleaved.

        Raises:
            PromptError, RequestError: a prompt or parameter this model cannot take.
            QueueFullError: too many requests are pending.
            EngineClosedError: after `close`.
        """
        requests = self.llm.intake.make_requests(prompt_ids, params)
        with self._changed:
            if self._is_closing:
                raise EngineClosedError("The engine is closed.")
            if self._num_pending + len(requests) > self.max_pending:
                raise QueueFullError(
                    f"{self._num_pending} requests are pending; the limit is {self.max_pending}.",
                    hint="Try again later.",
                )
            stream = Stream(self, requests, asyncio.get_running_loop())
            self._num_pending += len(requests)
            self._to_add.extend((weakref.ref(stream), request) for request in requests)
            self._changed.notify()
        return stream

    def cancel(self, stream: Stream) -> None:
        """End a stream's requests; any thread may call it."""
        with self._changed:
            self._to_cancel.extend(stream.requests)
            self._changed.notify()

    def close(self) -> None:
        """Stop the worker; streams still open end with an error. Calling it again does nothing."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        """The worker thread: take orders, step, deliver; sleep when there is nothing to do."""
        while self._take_orders():
            try:
                stepped = self._engine.step()
            except Exception as error:
                log.exception("a step failed")
                failure = EngineStepError(f"The model failed: {type(error).__name__}: {error}")
                stepped = self._engine.fail_running(failure)
            self._deliver(stepped)
        self._end_all()

    def _take_orders(self) -> bool:
        """Wait for work and take in what was ordered; False when the engine is to close."""
        with self._changed:
            while not (self._to_add or self._to_cancel or self._is_closing or self._engine.has_work):
                self._changed.wait()
            if self._is_closing:
                return False
            self._take_in()
            while self._to_cancel:
                request = self._to_cancel.popleft()
                self._engine.cancel(request)
                self._forget(request)
        return True

    def _take_in(self) -> None:
        while self._to_add:
            stream, request = self._to_add.popleft()
            self._streams[request] = stream
            self._engine.add(request)

    def _forget(self, request: Request) -> weakref.ref[Stream] | None:
        stream = self._streams.pop(request, None)
        if stream is not None:
            with self._changed:
                self._num_pending -= 1
        return stream

    def _deliver(self, stepped: list[Request]) -> None:
        """Hand out what a step produced, waking each event loop once."""
        mail: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Delta | Exception]]] = {}
        for request in stepped:
            item = request.error or request.take_delta()
            reference = self._forget(request) if request.is_finished else self._streams.get(request)
            stream = reference() if reference is not None else None
            if stream is not None and item is not None:
                mail.setdefault(stream.loop, []).append((stream, item))
        for loop, letters in mail.items():
            try:
                loop.call_soon_threadsafe(_hand_over, letters)
            except RuntimeError:  # the loop was closed: nobody is left to read
                for stream, _ in letters:
                    self.cancel(stream)

    def _end_all(self) -> None:
        """Tell every open stream that no more will come."""
        with self._changed:
            self._take_in()
        ended = list(self._streams)
        for request in ended:
            self._engine.cancel(request)
            request.error = EngineClosedError("The engine was closed while this request was running.")
        self._deliver(ended)


def _hand_over(letters: list[tuple[Stream, Delta | Exception]]) -> None:
    for stream, item in letters:
        stream.receive(item)

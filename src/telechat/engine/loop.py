"""The loop that carries out orders: take them, step the engine, report.

Runs on whatever thread or process calls it and sleeps, inside `receive`, when there is nothing to do. Knows
neither who sends orders nor how they arrive.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from telechat.engine.channel import (
    Add,
    Cancel,
    Close,
    Embed,
    Letter,
    LoadAdapter,
    Order,
    Report,
    UnloadAdapter,
)
from telechat.engine.engine import Engine
from telechat.engine.intake import Intake
from telechat.engine.outputs import Delta
from telechat.engine.request import Request
from telechat.engine.results import embedding_output
from telechat.errors import RankError, TelechatError

log = logging.getLogger(__name__)

# Called with whether to wait for an order; without waiting, it may return none.
Receive = Callable[[bool], Sequence[Order]]

# Each delta costs whoever passes it on to a client about 0.1 ms: so many a second are a twentieth of a core.
DELTAS_PER_SECOND = 600.0


class EngineClosedError(TelechatError):
    """The engine has been closed."""


class EngineStepError(TelechatError):
    """The model failed while this request was running."""


class EngineLoop:
    """An engine that takes orders.

    Args:
        engine: touched by nobody else from now on.
        intake: makes the requests of prompts.
        deltas_per_second: of all answers together. With many of them at once, the tokens that one gains
            within its share of time come in one delta; the first and the last never wait.

    Attributes:
        failure: what ended the loop, where it was not told to close.
    """

    def __init__(
        self, engine: Engine, intake: Intake, *, deltas_per_second: float = DELTAS_PER_SECOND
    ) -> None:
        self.engine = engine
        self._intake = intake
        self._deltas_per_second = deltas_per_second
        # When each answer that has begun may show its next tokens.
        self._due: dict[Request, float] = {}
        self._requests: dict[int, list[Request]] = {}
        self._key_of: dict[Request, int] = {}
        self._normalized: set[Request] = set()
        self.failure: TelechatError | None = None

    def run(self, receive: Receive, send: Callable[[Report], None]) -> None:
        """Work until told to close, or until a rank of the model is gone; every open request ends then."""
        while True:
            answered: list[Letter] = []
            for order in receive(not self.engine.has_work):
                if isinstance(order, Close):
                    error = EngineClosedError("The engine was closed while this request was running.")
                    send(self._report(answered + self._end_all(error)))
                    return
                if isinstance(order, Cancel):
                    self._cancel(order.key)
                elif isinstance(order, LoadAdapter | UnloadAdapter):
                    answered.append(self._change_adapters(order))
                else:
                    answered += self._add(order)
            # After a cancellation too: whoever watches the numbers sees that the place is free.
            try:
                letters = self._step()
            except RankError as error:  # no later step could succeed either
                self.failure = error
                send(self._report(answered + self._end_all(error)))
                return
            send(self._report(answered + letters))

    def _report(self, letters: list[Letter]) -> Report:
        return Report(letters, self.engine.stats())

    def _add(self, order: Add | Embed) -> list[Letter]:
        try:
            requests = self._make_requests(order)
        except TelechatError as error:
            return [Letter(order.key, error)]
        self._requests[order.key] = requests
        for request in requests:
            self._key_of[request] = order.key
            self.engine.add(request)
        return []

    def _change_adapters(self, order: LoadAdapter | UnloadAdapter) -> Letter:
        """Carried out at once: running answers wait while an adapter is read."""
        try:
            if isinstance(order, LoadAdapter):
                self.engine.load_adapter(order.name, order.folder)
            else:
                self.engine.unload_adapter(order.name)
        except TelechatError as error:
            return Letter(order.key, error)
        except Exception as error:  # whatever is wrong with the folder, the engine goes on
            log.exception("an adapter could not be changed")
            return Letter(order.key, EngineStepError(f"It failed: {type(error).__name__}: {error}"))
        return Letter(order.key, Delta("", finish_reason="stop"))

    def _make_requests(self, order: Add | Embed) -> list[Request]:
        prompt = order.prompt_token_ids
        if isinstance(order, Add):
            return self._intake.make_requests(
                prompt, order.params, tenant=order.tenant, priority=order.priority, adapter=order.adapter
            )
        request = self._intake.make_embedding(
            prompt, order.pooling, tenant=order.tenant, adapter=order.adapter
        )
        if order.normalize:
            self._normalized.add(request)
        return [request]

    def _cancel(self, key: int) -> None:
        for request in self._requests.pop(key, []):
            self.engine.cancel(request)
            self._key_of.pop(request, None)
            self._due.pop(request, None)
            self._normalized.discard(request)

    def _step(self) -> list[Letter]:
        if not self.engine.has_work:
            return []
        try:
            stepped = self.engine.step()
        except RankError:
            raise
        except Exception as error:  # whatever the model raised ends its requests, and the engine goes on
            log.exception("a step failed")
            failure = EngineStepError(f"The model failed: {type(error).__name__}: {error}")
            stepped = self.engine.fail_running(failure)
        now = time.monotonic()
        next_due = now + len(self._key_of) / self._deltas_per_second
        letters: list[Letter] = []
        for request in stepped:
            if request not in self._key_of:  # ended by the failure of another answer to the same prompt
                continue
            if request.is_finished or self._due.get(request, 0.0) <= now:
                letters += self._letters(request, next_due)
        return letters

    def _letters(self, request: Request, next_due: float) -> list[Letter]:
        """News of one request; after them it is silent until `next_due`."""
        key = self._key_of[request]
        if request.error:  # whoever reads an error reads no further: the prompt's other answers end too
            self._cancel(key)
            return [Letter(key, request.error)]
        item = request.take_delta() if request.pooling is None else self._vector(request)
        if item is not None:
            self._due[request] = next_due
        if request.is_finished:
            self._normalized.discard(request)
            self._due.pop(request, None)
            del self._key_of[request]
            siblings = self._requests[key]
            siblings.remove(request)
            if not siblings:
                del self._requests[key]
        return [] if item is None else [Letter(key, item)]

    def _vector(self, request: Request) -> Delta | None:
        """The one delta of a prompt that is to be embedded; None while it is being computed."""
        if not request.is_finished:
            return None
        output = embedding_output(request, normalize=request in self._normalized)
        return Delta("", finish_reason="stop", embedding=output.embedding.numpy().astype("<f4").tobytes())

    def _end_all(self, error: TelechatError) -> list[Letter]:
        keys = list(self._requests)
        for key in keys:
            self._cancel(key)
        return [Letter(key, error) for key in keys]

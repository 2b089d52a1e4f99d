"""One request on its way through the service: its place, its key's limits, its deadline, its counts.

Every route that makes the model work gets a visit from `Service.admit` and starts the engine through it, so
that limits, metrics and timeouts are the same everywhere. Knows no protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from telechat.engine.outputs import Delta
from telechat.engine.sampling_params import SamplingParams
from telechat.errors import ContextLengthError, TelechatError
from telechat.serve.admission import Place
from telechat.serve.contract import DeltaStream, ServiceEngine
from telechat.serve.errors import ApiError, error_code, timed_out, unavailable
from telechat.serve.metrics import Metrics
from telechat.serve.record import Record
from telechat.serve.settings import ServeSettings


class Visit:
    """A request that was let in. `close` it once its answer is over, however that ends.

    Args:
        engine: answers its prompts.
        settings: limits of the service.
        place: its place among the requests under way.
        record: what is noted about it.
        metrics: where its tokens and times are counted.
    """

    def __init__(
        self,
        engine: ServiceEngine,
        settings: ServeSettings,
        place: Place,
        record: Record,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._place: Place | None = place
        self.record = record
        self._deadline: float | None = None
        if settings.request_seconds is not None:
            elapsed = time.monotonic() - record.started
            self._deadline = asyncio.get_running_loop().time() + settings.request_seconds - elapsed

    def stream(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        adapter: str | None = None,
    ) -> DeltaStream:
        """Start the answers to one prompt, counted and within the deadline.

        Args:
            priority: lower goes first.
            adapter: name of the one to answer with.

        Raises:
            ApiError: 429 when the key has used up its tokens.
            ContextLengthError: the prompt is longer than the service or the model takes.
            TelechatError: the engine cannot take it; nothing was started.
        """
        prompt = list(prompt_ids)
        self.check_prompts([prompt])
        grant = self.record.grant
        tenant = grant.name if grant is not None else ""
        stream = self._engine.stream(prompt, params, tenant=tenant, priority=priority, adapter=adapter)
        # Not before: what the engine refuses, a key does not pay for.
        self._count_prompt(prompt)
        self.note_adapter(adapter)
        return _CountedStream(self, stream)

    def note_adapter(self, adapter: str | None) -> None:
        """The engine answers a prompt with this adapter."""
        self.record.adapter = adapter
        if adapter is not None:
            self._metrics.adapter_prompts.labels(adapter).inc()

    def check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Refuse prompts that cannot all be taken; a request is begun with all of them or with none.

        Raises:
            ApiError: 429 when the key has used up its tokens.
            ContextLengthError: one is longer than the service takes.
        """
        limit = self._settings.max_prompt_tokens
        for prompt in prompts:
            if limit is not None and len(prompt) > limit:
                hint = "Shorten it; that is the limit of this service."
                raise ContextLengthError(len(prompt), limit, hint=hint)
        if self.record.grant is not None:
            self.record.grant.check_prompt(sum(map(len, prompts)))

    def take_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Check and count prompts that the engine is about to get (`stream` does so itself).

        Raises:
            ApiError, ContextLengthError: as `check_prompts`; nothing was counted.
        """
        self.check_prompts(prompts)
        for prompt in prompts:
            self._count_prompt(prompt)

    def _count_prompt(self, prompt_ids: Sequence[int]) -> None:
        num_tokens = len(prompt_ids)
        if self.record.grant is not None:
            self.record.grant.count_tokens(num_tokens)
        self.record.num_prompt_tokens += num_tokens
        self._metrics.prompt_tokens.inc(num_tokens)
        if self._settings.log_prompts:
            self.record.prompts.append(partial(self._engine.llm.tokenizer.decode, list(prompt_ids)))

    @property
    def has_deadline(self) -> bool:
        """Its answer must be complete by some time."""
        return self._deadline is not None

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Within it, work that lasts past the deadline is cancelled.

        Raises:
            ApiError: 504 at the deadline.
        """
        try:
            async with asyncio.timeout_at(self._deadline) as scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            assert self._settings.request_seconds is not None
            raise timed_out(self._settings.request_seconds) from None

    def count(self, num_tokens: int) -> None:
        """Take note of tokens that an answer gained."""
        record = self.record
        if record.first_token_seconds is None:
            record.first_token_seconds = time.monotonic() - record.started
            self._metrics.first_token_seconds.observe(record.first_token_seconds)
        record.num_completion_tokens += num_tokens
        self._metrics.completion_tokens.inc(num_tokens)
        if record.grant is not None:
            record.grant.count_tokens(num_tokens)

    def note_pace(self, seconds: float, num_tokens: int) -> None:
        """An answer is complete: so many tokens came in the time after its first ones."""
        if num_tokens:
            self._metrics.token_seconds.observe(seconds / num_tokens)

    def note_error(self, error: TelechatError | ApiError) -> None:
        """An answer ended in this error."""
        self.record.error = error_code(error)

    def close(self) -> None:
        """Give the place back; closing twice does no harm."""
        if self._place is not None:
            self._place.close()
            self._place = None
            if self.record.grant is not None:
                self.record.grant.leave()


class _CountedStream:
    """A stream of the engine whose deltas are counted for a visit, and which ends with its deadline.

    Reading it raises ApiError: 504 at the deadline, 503 when the engine stops before the answers are whole.
    """

    def __init__(self, visit: Visit, stream: DeltaStream) -> None:
        self._visit = visit
        self._stream = stream
        self._deltas = aiter(stream)
        # By answer: when its first tokens came, and how many came after them.
        self._paces: dict[int, tuple[float, int]] = {}

    def __aiter__(self) -> _CountedStream:
        return self

    async def __anext__(self) -> Delta:
        try:
            if self._visit.has_deadline:
                async with self._visit.in_time():
                    delta = await anext(self._deltas)
            else:  # a timeout that never comes would still cost as much as all the rest of this call
                delta = await anext(self._deltas)
            if delta.finish_reason == "cancelled":
                raise unavailable("The service stopped before the answer was complete.")
        except (TelechatError, ApiError) as error:
            self._visit.note_error(error)
            raise
        self._count(delta)
        return delta

    def _count(self, delta: Delta) -> None:
        num_tokens = len(delta.token_ids)
        if num_tokens:
            self._visit.count(num_tokens)
            begun, num_after = self._paces.get(delta.index, (time.monotonic(), -num_tokens))
            self._paces[delta.index] = begun, num_after + num_tokens
        if delta.finish_reason is not None and delta.index in self._paces:
            begun, num_after = self._paces.pop(delta.index)
            self._visit.note_pace(time.monotonic() - begun, num_after)

    async def aclose(self) -> None:
        await self._stream.aclose()

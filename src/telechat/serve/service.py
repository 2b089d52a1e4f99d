"""What all routes share: the engine, the settings, and the steps every request goes through.

Knows no protocol: bodies and answers are the routes' business.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request

from telechat.engine.intake import no_room
from telechat.engine.outputs import Delta
from telechat.serve.admission import Admission
from telechat.serve.contract import DeltaStream, ServiceEngine, ServiceModel
from telechat.serve.errors import ApiError, model_not_found
from telechat.serve.metrics import Metrics
from telechat.serve.record import record_of
from telechat.serve.settings import ServeSettings
from telechat.serve.visit import Visit

SHORT_PROMPT_CHARS = 2000


@dataclass(frozen=True, kw_only=True)
class Service:
    """One model behind HTTP.

    Attributes:
        engine: answers prompts.
        settings: the operator's decisions.
        admission: places for requests.
        metrics: counts requests, tokens and times.
        created: when the service started, in seconds since 1970.
    """

    engine: ServiceEngine
    settings: ServeSettings
    admission: Admission
    metrics: Metrics = field(default_factory=Metrics)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def model(self) -> ServiceModel:
        """The model being served."""
        return self.engine.llm

    @property
    def model_name(self) -> str:
        """The model's name for clients."""
        return self.settings.served_model_name or self.model.name

    @property
    def known_names(self) -> list[str]:
        """What requests may name as model: ours, then its adapters."""
        return [self.model_name, *self.engine.adapters]

    def check_model(self, name: str | None) -> None:
        """Refuse a request for anything but our model, without an adapter; none named means ours.

        Raises:
            ApiError: 404.
        """
        if name is not None and name != self.model_name:
            raise model_not_found(name, [self.model_name])

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter that a request names as its model; None is our model alone.

        Raises:
            ApiError: 404, there is neither a model nor an adapter of this name.
        """
        if name is None or name == self.model_name:
            return None
        if name not in self.engine.adapters:
            raise model_not_found(name, self.known_names)
        return name

    def admit(self, request: Request) -> Visit:
        """Let a request in that will make the model work. Start the engine through the visit, and close it.

        Raises:
            ApiError: 429 when the service is full or its key has used up what it may, 503 while draining.
        """
        record = record_of(request.scope)
        place = self.admission.take()
        if record.grant is not None:
            try:
                record.grant.enter()
            except ApiError:
                place.close()
                raise
        record.was_admitted = True
        return Visit(self.engine, self.settings, place, record, self.metrics)

    async def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        limit: int | None = None,
    ) -> list[int]:
        """Token ids of a conversation, never truncated; long ones do not hold up other requests.

        Args:
            messages: as `Tokenizer.apply_chat_template` takes them.
            tools: offered functions.
            limit: most tokens of prompt and answer together; None is the model's.

        Raises:
            PromptError: what the model's chat format cannot express.
            ContextLengthError: no room is left for an answer.
        """
        encode = partial(self.model.tokenizer.apply_chat_template, messages, tools or None)
        # A short prompt takes less time than its way to another thread and back.
        is_short = not tools and sum(len(str(one)) for one in messages) <= SHORT_PROMPT_CHARS
        ids = encode() if is_short else await asyncio.to_thread(encode)
        self.check_room(ids, limit=limit)
        return ids

    def check_room(self, prompt_ids: Sequence[int], *, limit: int | None = None) -> None:
        """Refuse a prompt that leaves no room for an answer; `limit` as in `encode`.

        Raises:
            ContextLengthError: it does.
        """
        limit = min(limit or self.model.max_model_len, self.model.max_model_len)
        if len(prompt_ids) >= limit:
            raise no_room(len(prompt_ids), limit)

    async def deltas(self, stream: DeltaStream) -> AsyncGenerator[Delta, None]:
        """What a stream of a visit brings. Closing this generator ends the work behind it."""
        async with aclosing(stream):
            async for delta in stream:
                yield delta

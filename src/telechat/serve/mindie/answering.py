"""One raw completion under way, token by token: ids, texts, times and why it ended.

What the forms of MindIE have in common, before each writes it in its own way. A prompt is taken as the whole
text that the model sees, so names of control tokens in it become these tokens. Knows no form.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

from telechat.engine.outputs import Delta
from telechat.engine.sampling_params import SamplingParams
from telechat.errors import ContextLengthError
from telechat.serve.contract import DeltaStream, ServiceTokenizer
from telechat.serve.errors import timed_out
from telechat.serve.service import Service


@dataclass(frozen=True)
class Piece:
    """One generated token.

    Attributes:
        token_id: None for text that was held back until no token followed.
        text: new text; empty while a character is incomplete or may belong to a stop string.
        logprob: natural-log probability, None where not asked for.
        milliseconds: since the piece before, or since the prompt was sent.
        finish_reason: `length`, `eos_token` or `stop_sequence` on the last one.
    """

    token_id: int | None
    text: str
    logprob: float | None
    milliseconds: float
    finish_reason: str | None = None


@dataclass
class Answer:
    """A completion as far as it has come.

    Attributes:
        prompt_ids: what the model was given.
        params: how it is continued.
        pieces: what has come.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams
    pieces: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def token_ids(self) -> list[int]:
        """The ids so far."""
        return [piece.token_id for piece in self.pieces if piece.token_id is not None]

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; None while it runs."""
        return self.pieces[-1].finish_reason if self.pieces else None

    def summary(self) -> dict[str, Any]:
        """What every form reports of an answer."""
        return {
            "finish_reason": self.finish_reason,
            "generated_tokens": len(self.token_ids),
            "seed": self.params.seed,
        }


async def encode_prompt(service: Service, text: str, *, keep_last: int | None = None) -> list[int]:
    """Token ids of a whole prompt; names of control tokens become these tokens.

    Args:
        keep_last: keep only so many tokens of its end; None or 0 is all.

    Raises:
        ContextLengthError: no room is left for an answer.
    """
    tokenizer = service.model.tokenizer
    ids = await asyncio.to_thread(lambda: tokenizer.encode(text, parse_special=True))
    ids = ids[-keep_last:] if keep_last else ids
    limit = service.model.max_model_len
    if len(ids) >= limit:
        raise ContextLengthError(
            len(ids), limit - 1, hint="Shorten it; at least one token must be left for the answer."
        )
    return ids


async def pieces(
    service: Service, stream: DeltaStream, answer: Answer, *, timeout: float | None = None
) -> AsyncGenerator[Piece, None]:
    """The pieces of a completion, each also kept in `answer`. Closing this generator ends the work behind it.

    Args:
        timeout: seconds for the whole answer; None is no limit but the service's own.

    Raises:
        ApiError: 503 when the engine stops, 504 at the timeout.
    """
    tokenizer = service.model.tokenizer
    before = time.monotonic()
    async with aclosing(in_time(service.deltas(stream), timeout)) as deltas:
        async for delta in deltas:
            now = time.monotonic()
            for piece in _split(delta, tokenizer, (now - before) * 1000):
                answer.pieces.append(piece)
                yield piece
            before = now


async def drain(found: AsyncGenerator[Piece, None]) -> None:
    """Read a completion to its end; its pieces are in the `Answer`."""
    async with aclosing(found):
        async for _ in found:
            pass


async def in_time(deltas: AsyncGenerator[Delta, None], timeout: float | None) -> AsyncGenerator[Delta, None]:
    """`deltas`, given up after `timeout` seconds.

    Raises:
        ApiError: 504.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(aclosing(deltas))
        while True:
            try:
                async with asyncio.timeout_at(deadline) as scope:
                    delta = await anext(deltas, None)
            except TimeoutError:
                if timeout is None or not scope.expired():
                    raise
                raise timed_out(timeout) from None
            if delta is None:
                return
            yield delta


def _split(delta: Delta, tokenizer: ServiceTokenizer, milliseconds: float) -> list[Piece]:
    """A piece per token; the text of several belongs to the last of them."""
    ids: list[int | None] = list(delta.token_ids) or [None]
    logprobs = [entry.logprob for entry in delta.logprobs or ()]
    reason = _reason(delta)
    text = delta.text
    if reason == "eos_token" and ids[-1] is not None:
        # The engine leaves the token out of the text that ended it; MindIE shows it.
        text += tokenizer.decode([ids[-1]])
    found = []
    for number, token_id in enumerate(ids):
        is_last = number == len(ids) - 1
        found.append(
            Piece(
                token_id,
                text if is_last else "",
                logprobs[number] if number < len(logprobs) else None,
                milliseconds if number == 0 else 0.0,
                reason if is_last else None,
            )
        )
    return found


def _reason(delta: Delta) -> str | None:
    if delta.finish_reason is None:
        return None
    if delta.finish_reason == "length":
        return "length"
    return "stop_sequence" if isinstance(delta.stop_reason, str) else "eos_token"

"""One request on its way through the engine: what was asked, where it stands, what it has produced.

The record at the heart of the engine. Knows nothing of tensors, models or other requests.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from telechat.engine.outputs import Delta, FinishReason, Keep, TokenLogprob
from telechat.engine.sampling_params import SamplingParams
from telechat.engine.text import TextStream

if TYPE_CHECKING:
    from torch import Tensor

_numbers = itertools.count()


class State(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Request:
    """One prompt and its one answer.

    Attributes:
        prompt_token_ids: the prompt, at least one id.
        params: with n = 1.
        max_new_tokens: most tokens this request may generate; params and context length are already in it.
        stop_token_ids: ids that end it, the model's own included.
        text_stream: turns its ids into text.
        index: which of its prompt's `n` answers this is.
        keep_logits, keep_scores: what to keep of raw logits and processed scores at each step.
        number: unique and increasing; names the request in logs.
        slot: row of the runner's cache while running.
        uniform: source of its random numbers, its own so that neighbours in the batch change nothing.
        kept_logits, kept_scores: one entry per step: fp32 [V] for "all", {token id: value} for N.
    """

    prompt_token_ids: list[int]
    params: SamplingParams
    max_new_tokens: int
    stop_token_ids: frozenset[int]
    text_stream: TextStream
    index: int = 0
    keep_logits: Keep = None
    keep_scores: Keep = None
    number: int = field(default_factory=lambda: next(_numbers))
    state: State = State.WAITING
    slot: int | None = None
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    kept_logits: list[Tensor | dict[int, float]] = field(default_factory=list)
    kept_scores: list[Tensor | dict[int, float]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: Exception | None = None
    uniform: random.Random = field(init=False)
    _num_chars_told: int = 0
    _num_tokens_told: int = 0

    def __post_init__(self) -> None:
        self.uniform = random.Random(self.params.seed)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt_token_ids) + len(self.token_ids)

    @property
    def is_finished(self) -> bool:
        """No more tokens will come."""
        return self.state is State.FINISHED

    @property
    def last_token_id(self) -> int:
        """The token that the model sees next."""
        return self.token_ids[-1]

    def accept(self, token_id: int) -> None:
        """Take the next token of the answer; sets `finish_reason` when it is the last."""
        self.token_ids.append(token_id)
        if token_id in self.stop_token_ids:
            self.end("stop", token_id)
            return
        piece, stop = self.text_stream.push(token_id)
        self.text += piece
        if stop is not None:
            self.finish_reason, self.stop_reason = "stop", stop
        elif len(self.token_ids) >= self.max_new_tokens:
            self.end("length")

    def end(self, reason: FinishReason, stop_reason: int | None = None) -> None:
        """Note why the answer ends here, and bring out the text still held back."""
        piece, stop = self.text_stream.finish()
        self.text += piece
        if stop is not None:
            self.finish_reason, self.stop_reason = "stop", stop
        else:
            self.finish_reason, self.stop_reason = reason, stop_reason

    def take_delta(self) -> Delta | None:
        """What was gained since the last call; None when there is nothing to show yet."""
        text = self.text[self._num_chars_told :]
        if not text and self.finish_reason is None:
            return None
        first = self._num_tokens_told
        delta = Delta(
            text=text,
            token_ids=self.token_ids[first:],
            finish_reason=self.finish_reason,
            index=self.index,
            logprobs=self.logprobs[first:] if self.params.logprobs is not None else None,
            stop_reason=self.stop_reason,
        )
        self._num_chars_told = len(self.text)
        self._num_tokens_told = len(self.token_ids)
        return delta

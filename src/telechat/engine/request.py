"""One request on its way through the engine: what was asked, where it stands, what it has produced.

The record at the heart of the engine. Knows nothing of tensors, models or other requests.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from telechat.engine.blocks import BlockName
from telechat.engine.outputs import Delta, FinishReason, Keep, Pooling, TokenLogprob
from telechat.engine.rope import Epoch
from telechat.engine.sampling_params import SamplingParams
from telechat.engine.text import TextStream

if TYPE_CHECKING:
    from torch import Tensor

    from telechat.engine.grammar import Grammar
    from telechat.engine.sampling_state import SamplingState

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
        priority: lower is sooner.
        tenant: on whose behalf; tenants share the engine evenly.
        cache_salt: requests with different salts share no cached keys.
        adapter: number of its adapter (`adapters.AdapterTable`), or None.
        pooling: give one vector for the prompt instead of an answer.
        num_prompt_logprobs: report each prompt token's log-probability and this many likeliest; None: don't.
        grammar: what the answer must follow, or None.
        number: unique and increasing; names the request in logs.
        block_table: its blocks of the cache, in order; empty unless running.
        block_names: names of its full blocks, as far as they were needed.
        num_computed_tokens: leading tokens whose keys and values are in its blocks.
        num_published_blocks: leading blocks that others may share.
        num_easy_tokens: while it has no more than so many, its next token is all there is to a step: it has a
            block for it, fills none, and changes no rotary table.
        num_cached_tokens: prompt tokens found in the cache when the request was first admitted.
        rope_epoch: the rotary table its keys were made with, where that is one for all.
        draft_token_ids: guesses for the next tokens, which the next step checks.
        sampling: what the sampler keeps about it from step to step; made when it is first sampled.
        kept_logits, kept_scores: one entry per step: fp32 [V] for "all", {token id: value} for N.
        prompt_logprobs: of the prompt tokens done so far; None for the first, which nothing precedes.
        pooled: fp32 [hidden] sum of the hidden states so far, or the last one, by `pooling`.
    """

    prompt_token_ids: list[int]
    params: SamplingParams
    max_new_tokens: int
    stop_token_ids: frozenset[int]
    text_stream: TextStream
    index: int = 0
    keep_logits: Keep = None
    keep_scores: Keep = None
    priority: int = 0
    tenant: str = ""
    cache_salt: str = ""
    adapter: int | None = None
    pooling: Pooling | None = None
    num_prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    state: State = State.WAITING
    block_table: list[int] = field(default_factory=list)
    block_names: list[BlockName] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_published_blocks: int = 0
    num_easy_tokens: int = 0
    num_cached_tokens: int | None = None
    rope_epoch: Epoch | None = None
    draft_token_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    kept_logits: list[Tensor | dict[int, float]] = field(default_factory=list)
    kept_scores: list[Tensor | dict[int, float]] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    pooled: Tensor | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: Exception | None = None
    sampling: SamplingState | None = None
    _num_chars_told: int = 0
    _num_tokens_told: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt_token_ids) + len(self.token_ids)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Ids from position `start` to `stop` - 1 of prompt, answer and drafts, one after the other."""
        num_prompt = len(self.prompt_token_ids)
        ids = self.prompt_token_ids[start:stop] if start < num_prompt else []
        if stop > num_prompt:
            ids = ids + self.token_ids[max(start - num_prompt, 0) : stop - num_prompt]
            num_tokens = self.num_tokens
            if stop > num_tokens:
                ids += self.draft_token_ids[max(start - num_tokens, 0) : stop - num_tokens]
        return ids

    @property
    def needs_prompt_rows(self) -> bool:
        """The model's output at every prompt token is wanted, so none may be skipped."""
        if self.num_prompt_logprobs is not None:
            return len(self.prompt_logprobs) < len(self.prompt_token_ids)
        return self.pooling == "mean"

    def lose_computed(self) -> None:
        """What the model computed for it so far is gone; its answer up to here stays."""
        self.num_computed_tokens = self.num_published_blocks = self.num_easy_tokens = 0
        self.rope_epoch = None
        self.draft_token_ids.clear()
        self.pooled = None
        if self.needs_prompt_rows:
            self.prompt_logprobs.clear()

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
        is_first = self._num_chars_told == first == 0
        delta = Delta(
            text=text,
            token_ids=self.token_ids[first:],
            finish_reason=self.finish_reason,
            index=self.index,
            logprobs=self.logprobs[first:] if self.params.logprobs is not None else None,
            stop_reason=self.stop_reason,
            prompt_logprobs=self.prompt_logprobs
            if is_first and self.num_prompt_logprobs is not None
            else None,
            num_cached_tokens=self.num_cached_tokens if is_first else None,
        )
        self._num_chars_told = len(self.text)
        self._num_tokens_told = len(self.token_ids)
        return delta

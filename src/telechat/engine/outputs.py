"""What comes back from generation. Plain values; they know nothing of how they were made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

FinishReason = Literal["stop", "length", "cancelled"]
# How the hidden states of a prompt become one vector: their mean, or the last one.
Pooling = Literal["mean", "last"]
# How many raw logits or processed scores to keep per step: every one, the N highest, or none.
Keep = Literal["all"] | int | None
# Kept ones: fp32 [steps, V] on the CPU for "all"; per step {token id: value}, highest first, for N.
Kept = Tensor | list[dict[int, float]]


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probabilities at one step, by the model's own distribution (before penalties and temperature).

    Attributes:
        token_id: the token that was generated.
        logprob: its natural-log probability.
        top: (token id, log-probability) of the most likely tokens, best first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: without the stop token or stop string that ended it.
        token_ids: every generated id, the stop token and the tokens of a stop string included.
        finish_reason: `stop` (a stop token or string), `length` (max_tokens or the context) or `cancelled`.
        logprobs: one per token, where asked for.
        stop_reason: the stop string or stop token id that ended the answer, or None.
        logits, scores: per step, the model's raw output and what was sampled from, where asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None = None
    stop_reason: str | int | None = None
    logits: Kept | None = None
    scores: Kept | None = None


@dataclass(frozen=True)
class RequestOutput:
    """The answers to one prompt.

    Attributes:
        prompt_logprobs: one per prompt token, where asked for; None for the first, which nothing precedes.
        num_cached_tokens: prompt tokens that were found in the cache.
    """

    prompt_token_ids: list[int]
    outputs: list[Completion]
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0

    @property
    def text(self) -> str:
        """Text of the first answer."""
        return self.outputs[0].text

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first answer ended."""
        return self.outputs[0].finish_reason


@dataclass(frozen=True)
class Delta:
    """What an answer gained since the last delta. Joined, texts and ids are those of the completion.

    Attributes:
        text: new text; never half a character, never part of a stop string.
        token_ids: ids generated since the last delta (some may not have become text yet).
        finish_reason: set on the last delta.
        index: which of the request's `n` answers this belongs to.
        logprobs: of `token_ids`, where asked for.
        stop_reason: as in `Completion`, on the last delta.
        prompt_logprobs, num_cached_tokens: as in `RequestOutput`, on the first delta of each answer.
        embedding: of a prompt that was to be embedded: its vector, fp32 as little-endian bytes.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: list[TokenLogprob] | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached_tokens: int | None = None
    embedding: bytes | None = None


@dataclass(frozen=True)
class EmbeddingOutput:
    """The vector of one prompt.

    Attributes:
        embedding: fp32 [hidden] on the CPU.
    """

    prompt_token_ids: list[int]
    embedding: Tensor


@dataclass(frozen=True)
class EngineStats:
    """Where an engine stands, and what it has done since it was made.

    Attributes:
        num_free_blocks: blocks of the cache that no request uses.
        num_cached_blocks: those of them that still hold a beginning others may share.
        num_computed_tokens: tokens the model was given, those computed again after a preemption included.
        num_prefix_hit_tokens: tokens found in the cache instead.
        num_preemptions: how often a request lost its blocks to another.
        num_draft_tokens: guesses that the model has checked (see `LLM(speculate=…)`).
        num_accepted_drafts: those of them that were right.
    """

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    block_size: int
    num_steps: int
    num_computed_tokens: int
    num_generated_tokens: int
    num_prefix_hit_tokens: int
    num_preemptions: int
    num_draft_tokens: int = 0
    num_accepted_drafts: int = 0

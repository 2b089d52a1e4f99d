"""What a step of the engine consists of: made by the scheduler, run by the runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from telechat.engine.request import Request


class Work(NamedTuple):
    """Tokens of one request to compute, and how many of the last of them the model's output is wanted for.

    A request may have several in a step, one after the other: all of them store their keys before any
    attends. Requests that are pooled come after the others.

    Attributes:
        start: position of the first token; those before it are in the cache, or in this step's earlier work.
        rope_length: the length of text whose rotary table these tokens have.
    """

    request: Request
    start: int
    num_new_tokens: int
    num_logits: int
    rope_length: int

    @property
    def stop(self) -> int:
        """Position behind the last token."""
        return self.start + self.num_new_tokens


@dataclass(frozen=True)
class Step:
    """Work of one step; that of one request stands together."""

    work: tuple[Work, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens to compute."""
        return sum(work.num_new_tokens for work in self.work)


@dataclass
class Counters:
    """What has happened since the engine began.

    Attributes:
        num_computed_tokens: tokens that the model was given, those computed again included.
        num_prefix_hit_tokens: tokens found in the cache instead.
    """

    num_steps: int = 0
    num_computed_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_preemptions: int = 0

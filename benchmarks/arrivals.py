"""Requests of mixed lengths that arrive at random moments. Standard library only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Arrival:
    """One request.

    Attributes:
        second: when it arrives, after the start.
        prompt, new_tokens: its lengths in tokens.
    """

    second: float
    prompt: int
    new_tokens: int

    def entry(self) -> list[float]:
        """As a list, to be sent to a worker."""
        return [self.second, self.prompt, self.new_tokens]

    @classmethod
    def of(cls, entry: Sequence[float]) -> Arrival:
        """The reverse of `entry`."""
        second, prompt, new_tokens = entry
        return cls(float(second), int(prompt), int(new_tokens))


def random_arrivals(
    count: int, *, seconds: float, prompts: tuple[int, int], new_tokens: tuple[int, int], seed: int
) -> list[Arrival]:
    """`count` requests within `seconds`, lengths drawn evenly from the ranges, by time."""
    source = random.Random(seed)
    moments = sorted(source.uniform(0, seconds) for _ in range(count))
    return [Arrival(moment, source.randint(*prompts), source.randint(*new_tokens)) for moment in moments]

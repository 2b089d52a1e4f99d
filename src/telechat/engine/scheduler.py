"""Which requests run in the next step. Decides with integers; knows no tensors and no text.

Running requests occupy the slots 0 .. n-1 without gaps, because the model works on the first rows of its
cache: when one ends, the last one moves into its place, and the caller is told to move its cached row as
well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from telechat.engine.request import Request, State


@dataclass(frozen=True)
class Step:
    """Work of one step.

    Attributes:
        decode: requests that get their next token, in slots 0, 1, …
        prefill: newly admitted requests, in the slots after those, by growing prompt length.
    """

    decode: tuple[Request, ...]
    prefill: tuple[Request, ...]


@dataclass(frozen=True)
class Move:
    """A cached row that must follow its request: copy slot `source` to slot `target`."""

    source: int
    target: int


class Scheduler:
    """First come, first served, into a fixed number of slots.

    Args:
        max_batch_size: slots.
        max_prefill_tokens: prompt tokens, padding included, admitted in one step. A longer prompt is admitted
            alone.
    """

    def __init__(self, *, max_batch_size: int, max_prefill_tokens: int) -> None:
        self.max_batch_size = max_batch_size
        self.max_prefill_tokens = max_prefill_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def has_work(self) -> bool:
        """Some request is not finished."""
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request."""
        assert request.state is State.WAITING and request.slot is None
        self.waiting.append(request)

    def schedule(self) -> Step:
        """Admit what fits, and say what to run."""
        decode = tuple(self.running)
        admitted: list[Request] = []
        longest = 0
        while self.waiting and len(self.running) + len(admitted) < self.max_batch_size:
            longest = max(longest, len(self.waiting[0].prompt_token_ids))
            if admitted and longest * (len(admitted) + 1) > self.max_prefill_tokens:
                break
            admitted.append(self.waiting.popleft())
        # Neighbours of like length share a padded call in the runner.
        admitted.sort(key=lambda request: len(request.prompt_token_ids))
        for request in admitted:
            request.state, request.slot = State.RUNNING, len(self.running)
            self.running.append(request)
        return Step(decode, tuple(admitted))

    def remove(self, requests: Iterable[Request]) -> list[Move]:
        """Take requests out, waiting or running; returns the moves to make, in order."""
        moves = []
        for request in requests:
            if request.state is State.WAITING:
                self.waiting.remove(request)
            elif request.slot is not None:
                target = request.slot
                last = self.running.pop()
                if last is not request:
                    assert last.slot is not None
                    moves.append(Move(last.slot, target))
                    self.running[target] = last
                    last.slot = target
            request.state, request.slot = State.FINISHED, None
        return moves

"""Guesses by a small model that runs ahead of the large one.

It stores its keys in blocks of its own cache that have the very numbers of the large model's: what the large
one finds in its cache, shared beginnings included, the small one finds in its own. For that it computes all
that the large one computes. It draws its guesses with the request's own random numbers and settings, so that
where the two distributions are alike, the guesses are what the large model will draw. Knows nothing of
scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence

from telechat.engine.request import Request
from telechat.engine.runner import Runner
from telechat.engine.sampler import Sampler
from telechat.engine.work import Work
from telechat.models.paged import Executor


class DraftModel:
    """A model that guesses.

    Args:
        executor: the small model; its cache is made here.
        num_blocks, block_size: of the large model's cache.
        num_draft_tokens: most guesses for one request in a step.
    """

    def __init__(
        self, executor: Executor, *, num_blocks: int, block_size: int, num_draft_tokens: int
    ) -> None:
        self._num_draft_tokens = num_draft_tokens
        self._device = executor.device
        self._runner = Runner(executor, num_blocks=num_blocks, block_size=block_size, has_adapters=False)

    def propose(self, requests: Sequence[Request]) -> None:
        """Ask for room; the guesses follow in `fill`."""
        for request in requests:
            room = request.max_new_tokens - len(request.token_ids) - 1
            request.draft_token_ids = [0] * max(min(self._num_draft_tokens, room), 0)

    def fill(self, works: Sequence[Work]) -> None:
        """Guess token by token, for all requests at once."""
        # With tables that change by the token, one request may have several works.
        ahead = {work.request: list[Work]() for work in works if work.request.draft_token_ids}
        for work in works:
            if work.request in ahead:
                ahead[work.request].append(work)
        for offset in range(self._num_draft_tokens):
            requests = [request for request in ahead if len(request.draft_token_ids) > offset]
            if not requests:
                break
            step = [_single(ahead[request], request.num_tokens - 1 + offset) for request in requests]
            guesses = Sampler(requests, device=self._device).guess(self._runner.logits(step), offset)
            for request, token_id in zip(requests, guesses, strict=True):
                request.draft_token_ids[offset] = token_id

    def follow(self, works: Sequence[Work]) -> None:
        """Compute what the large model has computed: prompts, and the last guess, whose keys are missing."""
        self._runner.logits([work._replace(num_logits=0) for work in works])


def _single(works: Sequence[Work], position: int) -> Work:
    """The work that computes just the token at a position, with the table it will have."""
    [work] = [work for work in works if work.start <= position < work.stop]
    return work._replace(start=position, num_new_tokens=1, num_logits=1)

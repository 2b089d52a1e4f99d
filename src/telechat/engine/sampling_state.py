"""What sampling remembers of one request between steps: its random stream, its history, its fixed biases.

Made when the request is first sampled and kept on it, so that leaving a batch and coming back costs nothing.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from telechat.engine.history import History
from telechat.engine.penalties import Biases
from telechat.engine.sampling_params import MAX_SEED

if TYPE_CHECKING:
    from telechat.engine.request import Request


class SamplingState:
    """Sampling's memory of a request.

    Attributes:
        seed: of its random numbers; drawn here where the request names none.
        history: tokens seen, where a penalty needs them.
        grammar: what its answer must follow, or None.
        is_adjusted: something changes its logits before the choice.
        is_steady: and that is nothing but the history.
    """

    def __init__(self, request: Request) -> None:
        params = request.params
        self.seed = random.randint(0, MAX_SEED) if params.seed is None else params.seed
        self.history: History | None = None
        if params.repetition_penalty != 1:
            self.history = History(request.prompt_token_ids)
        elif params.presence_penalty or params.frequency_penalty:
            self.history = History()
        self.grammar = request.grammar
        self._min_tokens = params.min_tokens
        self._biases = Biases(params.logit_bias) if params.logit_bias else None
        self._early_biases = self._biases
        if params.min_tokens and request.stop_token_ids:
            early = {**params.logit_bias, **dict.fromkeys(request.stop_token_ids, -float("inf"))}
            self._early_biases = Biases(early)
        self.is_steady = self.grammar is None and self._early_biases is None
        self.is_adjusted = self.history is not None or not self.is_steady

    def biases(self, num_answer_tokens: int) -> Biases | None:
        """Biases on the token that follows so many tokens of the answer."""
        return self._early_biases if num_answer_tokens < self._min_tokens else self._biases

"""Penalties and biases on the logits of a batch, each row by its own request's parameters.

Only what some row asks for is computed. Knows nothing of how tokens are chosen afterwards.
Shapes: B rows, V vocabulary, T longest history, N rows of a subset.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from telechat.engine.history import History
from telechat.engine.request import Request


class Penalties:
    """Repetition, presence and frequency penalties and logit biases of one batch composition."""

    def __init__(self, requests: Sequence[Request], *, device: torch.device) -> None:
        params = [request.params for request in requests]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device)[:, None]

        self._repetition: Tensor | None = None
        if any(p.repetition_penalty != 1 for p in params):
            self._repetition = column([p.repetition_penalty for p in params])
        counted = [row for row, p in enumerate(params) if p.presence_penalty or p.frequency_penalty]
        self._counted = torch.tensor(counted, device=device) if counted else None
        self._presence = column([params[row].presence_penalty for row in counted])
        self._frequency = column([params[row].frequency_penalty for row in counted])
        self._prompt_lengths = torch.tensor(
            [len(requests[row].prompt_token_ids) for row in counted], device=device
        )
        biases = [
            (row, token_id, bias) for row, p in enumerate(params) for token_id, bias in p.logit_bias.items()
        ]
        self._bias: tuple[Tensor, Tensor, Tensor] | None = None
        if biases:
            rows, token_ids, values = zip(*biases, strict=True)
            self._bias = (
                torch.tensor(rows, device=device),
                torch.tensor(token_ids, device=device),
                torch.tensor(values, dtype=torch.float32, device=device),
            )

    def apply(self, logits_BV: Tensor, history: History) -> Tensor:
        """Logits fp32 [B, V] after penalties and biases, in place."""
        if self._repetition is not None:
            # A column past a row's end repeats the row's first token, which is seen anyway.
            columns = torch.arange(history.token_ids_BT.shape[1], device=logits_BV.device)
            is_token = columns < history.lengths_B[:, None]
            seen = torch.where(is_token, history.token_ids_BT, history.token_ids_BT[:, :1])
            values = logits_BV.gather(1, seen)
            values = torch.where(values > 0, values / self._repetition, values * self._repetition)
            logits_BV.scatter_(1, seen, values)
        if self._counted is not None:
            counts = self._count_answers(logits_BV, history, self._counted)
            penalty = counts * self._frequency + (counts > 0) * self._presence
            logits_BV.index_add_(0, self._counted, penalty, alpha=-1)
        if self._bias is not None:
            rows, token_ids, values = self._bias
            logits_BV.index_put_((rows, token_ids), values, accumulate=True)
        return logits_BV

    def _count_answers(self, logits_BV: Tensor, history: History, rows_N: Tensor) -> Tensor:
        """How often each token stands in the answer so far: fp32 [N, V]."""
        token_ids = history.token_ids_BT[rows_N]
        columns = torch.arange(token_ids.shape[1], device=token_ids.device)
        in_answer = (columns >= self._prompt_lengths[:, None]) & (columns < history.lengths_B[rows_N, None])
        counts = logits_BV.new_zeros(len(rows_N), logits_BV.shape[1])
        return counts.scatter_add_(1, token_ids, in_answer.to(counts.dtype))

"""From logits to the next token of each request.

Rows are independent: each has its own parameters and its own random numbers, one per step, so the neighbours
in the batch never change a row's choice. Knows nothing of models, text or scheduling.
Shapes: B rows, V vocabulary, T longest history, N rows of a subset, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from telechat.engine.history import History
from telechat.engine.outputs import Keep, TokenLogprob
from telechat.engine.penalties import Penalties
from telechat.engine.request import Request
from telechat.engine.truncation import keep_mask, pick_candidate, pick_from_all

Kept = Tensor | dict[int, float]


@dataclass(frozen=True)
class Sampled:
    """The choice for each row.

    Attributes:
        token_ids: the chosen tokens.
        broken_rows: rows whose logits are not numbers; their tokens mean nothing.
        logprobs, logits, scores: row -> what that row's request asked to see.
    """

    token_ids: list[int]
    broken_rows: list[int]
    logprobs: dict[int, TokenLogprob]
    logits: dict[int, Kept]
    scores: dict[int, Kept]


class Sampler:
    """Samples for one batch composition; build another when requests join or leave.

    Args:
        requests: row by row.
        vocab_size: V.
        device: where the logits are.
    """

    def __init__(self, requests: Sequence[Request], *, device: torch.device) -> None:
        self.requests = tuple(requests)
        self._penalties = Penalties(self.requests, device=device)
        rows = [row for row, request in enumerate(requests) if not request.params.is_greedy]
        self._sampled_rows = _SampledRows(self.requests, rows, device) if rows else None
        self._reporting = [
            row
            for row, request in enumerate(requests)
            if request.params.logprobs is not None
            or request.keep_logits is not None
            or request.keep_scores is not None
        ]

    @torch.inference_mode()
    def sample(self, logits_BV: Tensor, history: History) -> Sampled:
        """Choose one token per row. `logits_BV` may be overwritten."""
        raw = logits_BV.float()
        before = raw[self._reporting].clone() if self._reporting else None
        scores = self._penalties.apply(raw, history)
        best, chosen = scores.max(dim=-1)
        if self._sampled_rows is not None:
            chosen[self._sampled_rows.index] = self._sampled_rows.sample(scores)
        # One NaN in a row makes its maximum NaN.
        broken_rows: list[int] = best.isnan().nonzero()[:, 0].tolist()
        sampled = Sampled(chosen.tolist(), broken_rows, {}, {}, {})
        if before is not None:
            self._report(before, scores, sampled)
        return sampled

    def _report(self, raw_NV: Tensor, scores_BV: Tensor, sampled: Sampled) -> None:
        for position, row in enumerate(self._reporting):
            request = self.requests[row]
            raw = raw_NV[position]
            if request.params.logprobs is not None:
                sampled.logprobs[row] = token_logprob(raw, sampled.token_ids[row], request.params.logprobs)
            if request.keep_logits is not None:
                sampled.logits[row] = _kept(raw, request.keep_logits)
            if request.keep_scores is not None:
                params = request.params
                scores = scores_BV[row].clone()
                if not params.is_greedy:
                    scores /= params.temperature
                    kept = keep_mask(scores, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)
                    scores[~kept] = -torch.inf
                sampled.scores[row] = _kept(scores, request.keep_scores)


class _SampledRows:
    """The rows that draw at random, and their parameters as columns."""

    def __init__(self, requests: Sequence[Request], rows: list[int], device: torch.device) -> None:
        self.index = torch.tensor(rows, device=device)
        self._requests = [requests[row] for row in rows]
        params = [request.params for request in self._requests]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device)[:, None]

        self._temperature = column([p.temperature for p in params])
        self._top_k = [p.top_k for p in params]
        self._top_p = column([p.top_p for p in params])
        self._min_p = column([p.min_p for p in params])
        # Rows cut by rank need their best tokens in order; the others need no sorting at all.
        ranked = [n for n, p in enumerate(params) if p.top_k > 0 or p.top_p < 1]
        self._ranked = torch.tensor(ranked, dtype=torch.int64, device=device)
        self._unranked = torch.tensor(
            sorted(set(range(len(rows))) - set(ranked)), dtype=torch.int64, device=device
        )

    def sample(self, scores_BV: Tensor) -> Tensor:
        """Chosen ids int64 [N]."""
        draws = torch.tensor([request.uniform.random() for request in self._requests], dtype=torch.float64)
        draws_N1 = draws.to(scores_BV.device)[:, None]
        scores = scores_BV[self.index] / self._temperature
        chosen = torch.empty(len(self._requests), dtype=torch.int64, device=scores.device)
        for rows, pick in ((self._ranked, self._pick_ranked), (self._unranked, self._pick_unranked)):
            if len(rows):
                chosen[rows] = pick(scores[rows], rows, draws_N1[rows])
        return chosen

    def _pick_ranked(self, scores_NV: Tensor, rows: Tensor, draws_N1: Tensor) -> Tensor:
        top_k = [self._top_k[row] for row in rows.tolist()]
        return pick_candidate(scores_NV, top_k, self._top_p[rows], self._min_p[rows], draws_N1)

    def _pick_unranked(self, scores_NV: Tensor, rows: Tensor, draws_N1: Tensor) -> Tensor:
        return pick_from_all(scores_NV, self._min_p[rows], draws_N1)


def token_logprob(raw_V: Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """Log-probability of one token, and of the `num_top` most likely ones."""
    log_probs = torch.log_softmax(raw_V, dim=-1)
    best = log_probs.topk(min(num_top, len(log_probs)))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprob(token_id, float(log_probs[token_id]), top)


def _kept(values_V: Tensor, keep: Keep) -> Kept:
    if keep == "all":
        return values_V.to("cpu", copy=True)
    assert isinstance(keep, int)
    best = values_V.topk(min(keep, len(values_V)))
    return dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))

"""Cutting a distribution by rank, mass or relative probability, and drawing from what is left.

Draws invert the cumulative distribution in vocabulary order, one uniform number each: a tiny change of the
logits moves a boundary by as little and nothing else, so a seeded answer survives another batch size.
Shapes: N rows, V vocabulary, K candidates. Knows nothing of requests.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Enough for nearly every distribution that top-p cuts; where it is not, the whole vocabulary is sorted.
_FIRST_CANDIDATES = 64


def keep_mask(scores_V: Tensor, *, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Which tokens one row may draw: bool [V]. The contract in plain form; scores are after temperature."""
    order = scores_V.argsort(descending=True, stable=True)
    ranked = scores_V[order]
    kept = torch.ones_like(ranked, dtype=torch.bool)
    if top_k:
        kept[top_k:] = False
    probs = torch.softmax(torch.where(kept, ranked, -torch.inf).double(), dim=-1)
    kept &= probs.cumsum(-1) - probs < top_p
    if min_p:
        kept &= probs >= min_p * probs[0]
    return torch.zeros_like(kept).scatter_(0, order, kept)


def pick_from_all(scores_NV: Tensor, min_p_N1: Tensor, draws_N1: Tensor) -> Tensor:
    """Ids int64 [N] drawn from the whole vocabulary, cut by min-p only. Draws are fp64 in [0, 1)."""
    weights = torch.softmax(scores_NV, dim=-1).double()
    weights = torch.where(weights >= min_p_N1 * weights.amax(-1, keepdim=True), weights, 0.0)
    return _invert(weights, draws_N1)[:, 0]


def pick_candidate(
    scores_NV: Tensor, top_k: list[int], top_p_N1: Tensor, min_p_N1: Tensor, draws_N1: Tensor
) -> Tensor:
    """Ids int64 [N] drawn after top-k (0: all), top-p and min-p. Draws are fp64 in [0, 1)."""
    vocab_size = scores_NV.shape[1]
    ranks = torch.tensor([k or vocab_size for k in top_k], device=scores_NV.device)[:, None]
    width = min(vocab_size, max(_FIRST_CANDIDATES, *top_k))
    best = scores_NV.topk(width)
    # Probabilities among the first `ranks` tokens; for rows without top-k that is the whole vocabulary.
    in_rank = torch.arange(width, device=scores_NV.device) < ranks
    among_best = torch.where(in_rank, best.values, -torch.inf).logsumexp(-1, keepdim=True)
    total = torch.where(ranks < vocab_size, among_best, scores_NV.logsumexp(-1, keepdim=True))
    probs = torch.where(in_rank, (best.values - total).exp(), 0.0).double()
    mass = probs.cumsum(-1)
    if width < vocab_size:
        is_short = (ranks > width) & (mass[:, -1:] < top_p_N1)
        if bool(is_short.any()):
            return _pick_with_wide_rows(scores_NV, top_k, top_p_N1, min_p_N1, draws_N1, is_short[:, 0])
    kept = (mass - probs < top_p_N1) & (probs >= min_p_N1 * probs[:, :1])
    token_ids, order = best.indices.sort(-1)
    weights = torch.where(kept, probs, 0.0).gather(-1, order)
    return token_ids.gather(-1, _invert(weights, draws_N1))[:, 0]


def _pick_with_wide_rows(
    scores_NV: Tensor,
    top_k: list[int],
    top_p_N1: Tensor,
    min_p_N1: Tensor,
    draws_N1: Tensor,
    is_short_N: Tensor,
) -> Tensor:
    """As `pick_candidate`, where the first candidates fall short of some rows' top-p: sort those wholly."""
    vocab_size = scores_NV.shape[1]
    chosen = torch.empty(len(top_k), dtype=torch.int64, device=scores_NV.device)
    for rows, is_wide in ((is_short_N.nonzero()[:, 0], True), ((~is_short_N).nonzero()[:, 0], False)):
        if len(rows):
            ranks = [top_k[row] or (vocab_size if is_wide else 0) for row in rows.tolist()]
            parts = (top_p_N1[rows], min_p_N1[rows], draws_N1[rows])
            chosen[rows] = pick_candidate(scores_NV[rows], ranks, *parts)
    return chosen


def _invert(weights_NK: Tensor, draws_N1: Tensor) -> Tensor:
    """Index int64 [N, 1] at which the cumulative weight first exceeds the draw's share of the total."""
    mass = weights_NK.cumsum(-1)
    # Rounding must not carry a draw close to 1 up to the total, where no token is left.
    target = torch.minimum(draws_N1, torch.full_like(draws_N1, 1 - 1e-12)) * mass[:, -1:]
    return torch.searchsorted(mass, target, right=True).clamp_(max=weights_NK.shape[1] - 1)

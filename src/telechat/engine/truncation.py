"""Cutting a distribution by rank, mass or relative probability, and drawing from what is left.

Draws invert the cumulative distribution in vocabulary order, one uniform number each: a tiny change of the
logits moves a boundary by as little and nothing else, so a seeded answer survives another batch size.
In plain torch for any device; `ops.cpu.sample` does the same in C.
Shapes: L rows, N some of them, V vocabulary, K candidates. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Enough for most distributions that top-p cuts; rows for which it is not look at 16 times as many, and so on:
# ranking a few tokens is many times cheaper than sorting a vocabulary.
_FIRST_CANDIDATES = 64
_WIDENING = 16


def choose(scores_LV: Tensor, rows: npt.NDArray[np.void]) -> Tensor:
    """The token of each row, int64 [L] on the scores' device; -1 where they have no finite maximum.

    Args:
        scores_LV: fp32 [L, V], penalties, biases and masks applied.
        rows: [L] with the fields temperature (0: the best token), top_k, top_p, min_p and uniform.
    """
    best, chosen = scores_LV.max(dim=-1)  # one NaN in a row makes its maximum NaN
    is_drawn = rows["temperature"] > 0
    is_ranked = is_drawn & ((rows["top_k"] > 0) | (rows["top_p"] < 1))

    def column(name: str, index: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows[name][index]).to(scores_LV.device)[:, None]

    for index in (np.flatnonzero(is_drawn & ~is_ranked), np.flatnonzero(is_ranked)):
        if not len(index):
            continue
        index_N = torch.from_numpy(index).to(scores_LV.device)
        # Distances from the best first, and no temperature that is next to nothing: no infinity arises.
        scores_NV = (scores_LV[index_N] - best[index_N, None]) / column("temperature", index).clamp_min(1e-30)
        min_p, draws = column("min_p", index), column("uniform", index)
        if is_ranked[index[0]]:
            top_k = rows["top_k"][index].tolist()
            chosen[index_N] = pick_candidate(scores_NV, top_k, column("top_p", index), min_p, draws)
        else:
            chosen[index_N] = pick_from_all(scores_NV, min_p, draws)
    return torch.where(best.isfinite(), chosen, -1)


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
    scores_NV: Tensor,
    top_k: Sequence[int],
    top_p_N1: Tensor,
    min_p_N1: Tensor,
    draws_N1: Tensor,
    *,
    num_candidates: int = _FIRST_CANDIDATES,
) -> Tensor:
    """Ids int64 [N] drawn after top-k (0: all), top-p and min-p. Draws are fp64 in [0, 1).

    `num_candidates` is how many of the best tokens to look at first; it changes the cost, not the choice.
    """
    vocab_size = scores_NV.shape[1]
    width = min(vocab_size, max(*top_k, num_candidates if 0 in top_k else 1))
    best_NK, ids_NK = _best(scores_NV, width)
    ranks = torch.tensor([k or vocab_size for k in top_k], device=scores_NV.device)[:, None]
    in_rank = torch.arange(width, device=scores_NV.device) < ranks
    # Probabilities among the first `ranks` tokens; for rows without top-k that is the whole vocabulary.
    total = torch.where(in_rank, best_NK, -torch.inf).logsumexp(-1, keepdim=True)
    if 0 in top_k and width < vocab_size:
        total = torch.where(ranks < vocab_size, total, scores_NV.logsumexp(-1, keepdim=True))
    probs = torch.where(in_rank, (best_NK - total).exp(), 0.0).double()
    mass = probs.cumsum(-1)
    kept = (mass - probs < top_p_N1) & (probs >= min_p_N1 * probs[:, :1])
    token_ids, order = ids_NK.sort(-1)
    weights = torch.where(kept, probs, 0.0).gather(-1, order)
    chosen = token_ids.gather(-1, _invert(weights, draws_N1))[:, 0]
    is_short = (ranks > width) & (mass[:, -1:] < top_p_N1)
    if width < vocab_size and bool(is_short.any()):
        rows = is_short[:, 0].nonzero()[:, 0]
        chosen[rows] = pick_candidate(
            scores_NV[rows],
            [top_k[row] for row in rows.tolist()],
            top_p_N1[rows],
            min_p_N1[rows],
            draws_N1[rows],
            num_candidates=width * _WIDENING,
        )
    return chosen


def _best(scores_NV: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` highest scores of each row, best first, and their ids; of equal ones the first ids."""
    best = scores_NV.topk(width)
    has_tie_outside = (scores_NV >= best.values[:, -1:]).sum(-1) > width
    if bool(has_tie_outside.any()):  # which of them topk takes is its own affair
        ranked = scores_NV.sort(dim=-1, descending=True, stable=True)
        return ranked.values[:, :width], ranked.indices[:, :width]
    token_ids, order = best.indices.sort(-1)
    values, by_value = best.values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return values, token_ids.gather(-1, by_value)


def _invert(weights_NK: Tensor, draws_N1: Tensor) -> Tensor:
    """Index int64 [N, 1] at which the cumulative weight first exceeds the draw's share of the total."""
    mass = weights_NK.cumsum(-1)
    # Rounding must not carry a draw close to 1 up to the total, where no token is left.
    target = torch.minimum(draws_N1, torch.full_like(draws_N1, 1 - 1e-12)) * mass[:, -1:]
    return torch.searchsorted(mass, target, right=True).clamp_(max=weights_NK.shape[1] - 1)

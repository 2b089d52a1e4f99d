"""KTO (Ethayarajh et al. 2024): single answers, each judged good or bad, such as thumbs."""

from __future__ import annotations

import torch
from torch import Tensor


def kto_baseline(mismatched_N: Tensor, reference_mismatched_N: Tensor) -> Tensor:
    """How far the model has moved from the start weights in general [], without gradient and at least 0.

    Args:
        mismatched_N: log-probabilities of answers that belong to other prompts.
        reference_mismatched_N: the same under the start weights.
    """
    return (mismatched_N - reference_mismatched_N).mean().clamp(min=0).detach()


def kto_loss(
    answers_N: Tensor,
    reference_N: Tensor,
    is_good_N: Tensor,
    baseline: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """Loss [N] of each answer.

    Args:
        answers_N: log-probability of each answer, summed over its tokens.
        reference_N: the same under the start weights.
        is_good_N: bool, the verdict.
        baseline: [] see `kto_baseline`.
        beta: strength of the tie to the start weights.
        desirable_weight, undesirable_weight: of good and of bad answers; to balance unequal numbers.
    """
    gain_N = answers_N - reference_N - baseline
    signs = torch.where(is_good_N, 1.0, -1.0)
    weights = torch.where(is_good_N, desirable_weight, undesirable_weight)
    return weights * (1 - torch.sigmoid(beta * signs * gain_N))

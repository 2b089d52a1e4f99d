"""ORPO (Hong et al. 2024): learn the chosen answer, and raise its odds over the rejected one's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def orpo_loss(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """Loss [P] of each pair: cross-entropy of the chosen answer and beta times the odds ratio's loss.

    Args:
        chosen_P, rejected_P: mean log-probability of each answer's tokens.
        beta: weight of the second term (lambda in the paper).
    """
    log_odds_P = (chosen_P - rejected_P) - (_log_of_rest(chosen_P) - _log_of_rest(rejected_P))
    return -chosen_P - beta * F.logsigmoid(log_odds_P)


def _log_of_rest(log_probability: Tensor) -> Tensor:
    """log(1 - p), from log p < 0, by whichever form keeps its digits."""
    near_one = log_probability > -math.log(2)
    # Each form gets harmless values where the other is taken: a NaN there would spoil the gradient.
    small = torch.where(near_one, log_probability, -1.0)
    large = torch.where(near_one, -1.0, log_probability)
    return torch.where(near_one, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))

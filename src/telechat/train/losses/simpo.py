"""SimPO (Meng et al. 2024): prefer the chosen answer per token by a margin, without reference weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def simpo_loss(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Loss [P] of each pair.

    Args:
        chosen_P, rejected_P: mean log-probability of each answer's tokens.
        beta: scale of the difference.
        gamma: margin that beta times the difference should exceed.
    """
    return -F.logsigmoid(beta * (chosen_P - rejected_P) - gamma)

"""DPO (Rafailov et al. 2023): prefer the chosen answer by more than the start weights do."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Loss [P] of each pair.

    Args:
        chosen_P, rejected_P: log-probability of each answer, summed over its tokens.
        reference_chosen_P, reference_rejected_P: the same under the start weights.
        beta: strength of the tie to the start weights; smaller lets the model move further.
    """
    margin_P = (chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P)
    return -F.logsigmoid(beta * margin_P)

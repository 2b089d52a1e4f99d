"""What a run minimises, given final hidden states: plain next-token cross-entropy.

Preference losses have the same shape (`Objective`). Knows nothing of models, ranks or optimisers.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from telechat.train.batch import IGNORED, Batch

# The number of learnt positions is rounded up to multiples of this. Matrix libraries generate code for every
# new shape; without the rounding that took a fifth of the training time of a small model.
_LEARNT_STEP = 256


class Objective(Protocol):
    """A loss that sums over what a batch teaches. The step divides by the sum of `count` over its batches."""

    def count(self, batch: Batch) -> float:
        """How much the batch teaches: its targets, its pairs; asked while the batch is on the host."""
        ...

    def loss(self, hidden_BSH: Tensor, head_VH: Tensor, batch: Batch) -> Tensor:
        """Summed loss [] of final hidden states under the output weight of the model."""
        ...


class CrossEntropy:
    """Next-token cross-entropy; every learnt token weighs alike, or as `Batch.weights` says."""

    def count(self, batch: Batch) -> float:
        """Learnt positions, or the sum of their weights."""
        learnt = batch.targets != IGNORED
        return float(learnt.sum() if batch.weights is None else batch.weights[learnt].sum())

    def loss(self, hidden_BSH: Tensor, head_VH: Tensor, batch: Batch) -> Tensor:
        """Summed loss []. Only learnt positions reach the head: most tokens are prompt or padding."""
        places = (batch.targets.flatten() != IGNORED).nonzero()[:, 0]
        num_padded = -len(places) % _LEARNT_STEP
        targets = F.pad(batch.targets.flatten()[places], (0, num_padded), value=IGNORED)
        hidden = hidden_BSH.flatten(0, 1)[F.pad(places, (0, num_padded))]
        logits = F.linear(hidden, head_VH).float()
        if batch.weights is None:
            return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        return (losses[: len(places)] * batch.weights.flatten()[places]).sum()

"""What a run minimises, given final hidden states: plain next-token cross-entropy.

Preference losses have the same shape (`Objective`). Knows nothing of models, ranks or optimisers.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from telechat.train.batch import IGNORED, Batch
from telechat.train.losses.cross_entropy import chunked_cross_entropy


class Objective(Protocol):
    """A loss that sums over what a batch teaches. The step divides by the sum of `count` over its batches."""

    def count(self, batch: Batch) -> float:
        """How much the batch teaches: its targets, its pairs; asked while the batch is on the host."""
        ...

    def loss(self, hidden_BSH: Tensor, head_VH: Tensor, batch: Batch) -> Tensor:
        """Summed loss [] of final hidden states under the output weight of the model."""
        ...


class CrossEntropy:
    """Next-token cross-entropy; every learnt token weighs alike, or as `Batch.weights` says.

    Args:
        z_loss: factor on the squared log-sum-exp of each token's logits, added to its loss.
    """

    def __init__(self, *, z_loss: float = 0.0) -> None:
        self.z_loss = z_loss

    def count(self, batch: Batch) -> float:
        """Learnt positions, or the sum of their weights."""
        learnt = batch.targets != IGNORED
        return float(learnt.sum() if batch.weights is None else batch.weights[learnt].sum())

    def loss(self, hidden_BSH: Tensor, head_VH: Tensor, batch: Batch) -> Tensor:
        """Summed loss []."""
        weights = None if batch.weights is None else batch.weights.flatten()
        return chunked_cross_entropy(
            hidden_BSH.flatten(0, 1), head_VH, batch.targets.flatten(), weights_N=weights, z_loss=self.z_loss
        )

"""Embedding, head and loss over a vocabulary that tensor-parallel ranks share.

Each rank holds the rows of a range of token ids. The loss needs three numbers per token from the other ranks,
so no rank ever has whole logits. Knows nothing of layouts. Shapes: N learnt tokens, v ids of this rank, n
ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from telechat.train.batch import Batch
from telechat.train.distributed.collectives import gather_sequence, scatter_sequence_sum
from telechat.train.losses.cross_entropy import chunked_cross_entropy

c10d: Any = dist


class VocabularyEmbedding(nn.Module):
    """The rows of a range of ids; returns this rank's part of the sequence.

    Args:
        weight: [v, hidden].
        start: the first id of the range.
    """

    def __init__(self, weight: nn.Parameter, start: int, group: Any) -> None:
        super().__init__()
        self.weight = weight
        self.start = start
        self.group = group

    def forward(self, ids_BS: Tensor) -> Tensor:
        """int64 ids of the whole vocabulary [B, S] -> [B, S / n, hidden]."""
        return scatter_sequence_sum(_rows(self.weight, ids_BS, self.start), self.group)


class VocabularyCrossEntropy:
    """`CrossEntropy` with a head that is spread over ranks; the same loss on all of them.

    Args:
        start: the first id of this rank's range.
        z_loss: as `CrossEntropy`.
    """

    def __init__(self, start: int, group: Any, *, z_loss: float = 0.0) -> None:
        self.start = start
        self.group = group
        self.z_loss = z_loss

    def loss(self, hidden_BSH: Tensor, head_vH: Tensor, batch: Batch) -> Tensor:
        """Summed loss [] of this rank's part of the hidden states, [B, S / n, hidden], and of the head."""
        whole = gather_sequence(hidden_BSH, self.group).flatten(0, 1)
        return chunked_cross_entropy(
            whole,
            head_vH,
            batch.targets.flatten(),
            weights_N=None if batch.weights is None else batch.weights.flatten(),
            z_loss=self.z_loss,
            first_word=self.start,
            merge=self._merge,
        )

    def _merge(self, largest_N: Tensor, sums_N: Tensor, chosen_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ranks found for their part of the vocabulary -> for all of it.

        Largest logit, sum of the exponentials of the differences from it, and the target's logit or 0.
        """
        largest = largest_N.clone()
        c10d.all_reduce(largest, c10d.ReduceOp.MAX, group=self.group)
        sums = torch.stack([sums_N * torch.exp(largest_N - largest), chosen_N])
        c10d.all_reduce(sums, group=self.group)
        return largest, sums[0], sums[1]


def _rows(weight_vH: Tensor, ids: Tensor, start: int) -> Tensor:
    """Embedding rows [..., hidden] of the ids in this rank's range, zeros for the others."""
    local = ids - start
    is_here = (local >= 0) & (local < weight_vH.shape[0])
    return F.embedding(torch.where(is_here, local, 0), weight_vH) * is_here[..., None]

"""The tensors of one micro batch: what a model is shown and what it has to predict.

Targets are already shifted, so each position is complete in itself and the sequence can be cut anywhere.
Knows nothing of where rows come from or of what is done with the loss. Shapes: B rows, S positions.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from telechat.data.samples import BatchArrays

IGNORED = -100
PADDING_SEGMENT = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One micro batch.

    Attributes:
        ids: int64 [B, S] tokens.
        positions: int64 [B, S] rotary positions; they restart with each conversation of a packed row.
        segments: int32 [B, S] number of the conversation within its row, from 0; -1 is padding.
        targets: int64 [B, S] the token to predict at each position; -100 where nothing is learnt.
        weights: float32 [B, S] weight of each target, or None where all weigh 1.
        is_packed: some row holds more than one conversation, so attention needs a mask between them. Known
            on the host, because asking an accelerator would stall it.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    targets: Tensor
    weights: Tensor | None = None
    is_packed: bool = False

    @classmethod
    def from_arrays(cls, arrays: BatchArrays) -> Batch:
        """The same as tensors, which share the arrays' memory."""
        return cls(
            ids=torch.from_numpy(arrays.ids),
            positions=torch.from_numpy(arrays.positions),
            segments=torch.from_numpy(arrays.segments),
            targets=torch.from_numpy(arrays.targets),
            weights=None if arrays.weights is None else torch.from_numpy(arrays.weights),
            is_packed=arrays.is_packed,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding. Waits for the device."""
        return int((self.segments != PADDING_SEGMENT).sum())

    @property
    def num_targets(self) -> int:
        """Positions where something is learnt. Waits for the device."""
        return int((self.targets != IGNORED).sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return dataclasses.replace(
            self,
            ids=self.ids.to(device, non_blocking=True),
            positions=self.positions.to(device, non_blocking=True),
            segments=self.segments.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            weights=None if self.weights is None else self.weights.to(device, non_blocking=True),
        )

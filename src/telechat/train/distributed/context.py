"""A rank's share of a batch, and attention over all of it where ranks share sequences.

Knows nothing of weights or losses. Shapes: B rows, S positions of the padded row, s positions of this rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from telechat.layers.attention import AttentionInputs
from telechat.layers.rotary import RotaryTables, rotate
from telechat.models.decoder import LayerAttend
from telechat.ops.attention import AttentionFunction
from telechat.train.batch import IGNORED, PADDING_SEGMENT, Batch
from telechat.train.distributed.heads import heads_attention
from telechat.train.distributed.layout import ParallelLayout, Place
from telechat.train.distributed.ring import ring_attention, zigzag_columns
from telechat.train.forward import segment_mask


@dataclass(frozen=True)
class Share:
    """What one rank computes on of a micro batch.

    Attributes:
        batch: the columns of this rank [B, s], on its device.
        segments: int32 [B, S] of the whole rows, where attention needs a mask between conversations.
        balance_weight: factor on a mixture's balancing loss in the loss that is differentiated.
    """

    batch: Batch
    segments: Tensor | None
    balance_weight: float


def row_multiple(layout: ParallelLayout) -> int:
    """What rows are padded to a multiple of, so that every rank gets as many positions."""
    parts = 1 if layout.cp == 1 else layout.cp * (2 if layout.context == "ring" else 1)
    return parts * layout.tp


def pad_rows(batch: Batch, num_rows: int, length: int) -> Batch:
    """The batch with rows and columns of padding at its ends; they teach nothing."""
    rows, columns = num_rows - batch.ids.shape[0], length - batch.ids.shape[1]
    if not rows and not columns:
        return batch

    def pad(tensor: Tensor, value: int) -> Tensor:
        return F.pad(tensor, (0, columns, 0, rows), value=value)

    return dataclasses.replace(
        batch,
        ids=pad(batch.ids, 0),
        positions=pad(batch.positions, 0),
        segments=pad(batch.segments, PADDING_SEGMENT),
        targets=pad(batch.targets, IGNORED),
        weights=None if batch.weights is None else pad(batch.weights, 0),
    )


def changed(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with another part of each of its tensors."""
    return dataclasses.replace(
        batch,
        ids=change(batch.ids),
        positions=change(batch.positions),
        segments=change(batch.segments),
        targets=change(batch.targets),
        weights=None if batch.weights is None else change(batch.weights),
    )


class ContextShare:
    """How `cp` ranks divide rows, and how they attend over them.

    Args:
        group: the ranks that share each row; None where none do.
        attention: the model's own form, for whole rows.
        dtype: of queries and keys.
    """

    def __init__(
        self,
        layout: ParallelLayout,
        place: Place,
        group: Any | None,
        attention: AttentionFunction,
        dtype: torch.dtype,
    ) -> None:
        self.layout = layout
        self.place = place
        self.group = group
        self.attention = attention
        self.dtype = dtype

    def columns(self, length: int) -> Tensor:
        """int64 [s] columns of this rank."""
        if self.layout.context == "ring" and self.layout.cp > 1:
            return zigzag_columns(self.place.cp, self.layout.cp, length)
        part = length // self.layout.cp
        return torch.arange(self.place.cp * part, (self.place.cp + 1) * part)

    def share(self, batch: Batch, device: torch.device, *, balance_weight: float) -> Share:
        """This rank's columns of a batch that is padded already."""
        segments = batch.segments.to(device) if batch.is_packed else None
        if self.layout.cp > 1:
            columns = self.columns(batch.ids.shape[1])
            batch = changed(batch, lambda tensor: tensor[:, columns])
        return Share(batch.to(device), segments, balance_weight)

    def inputs(self, rotary: RotaryTables, share: Share) -> tuple[AttentionInputs, LayerAttend | None]:
        """What the layers of one forward call share, and what stands for attention where ranks share rows."""
        # As in one process: no conversation is longer than the training length, though padded rows may be.
        cos, sin = rotary.rows(share.batch.positions, rotary.settings.training_length)
        mask = None
        if share.segments is not None and (self.layout.cp == 1 or self.layout.context == "heads"):
            mask = segment_mask(share.segments, self.dtype)
        inputs = AttentionInputs(
            cos,
            sin,
            mask,
            is_causal=mask is None and share.batch.ids.shape[1] > 1,
            is_real=share.batch.segments != PADDING_SEGMENT,
        )
        if self.layout.cp == 1:
            return inputs, None

        def attend(layer: int, q_BsHd: Tensor, kv_BsK2d: Tensor) -> Tensor:
            k, v = kv_BsK2d.unbind(3)
            q, k = rotate(q_BsHd, cos, sin), rotate(k, cos, sin)
            if self.layout.context == "ring":
                return ring_attention(q, k, v, self.group, share.segments)
            return heads_attention(q, k, v, self.group, self.attention, mask)

        return inputs, attend

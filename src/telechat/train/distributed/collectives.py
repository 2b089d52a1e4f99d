"""Collectives that gradients flow through: along the sequence for tensor parallelism, and all to all.

The backward of a gather is the sum-and-scatter and the other way round: ranks hold parts of one gradient that
add up. Knows nothing of models. Shapes: B rows, S positions, n ranks of the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# torch's stubs leave half of this out.
c10d: Any = dist
Group = Any


def gather_sequence(part: Tensor, group: Group) -> Tensor:
    """[B, S / n, ...] of every rank -> [B, S, ...] on all; gradients are summed over the ranks and cut."""
    out: Tensor = _Gather.apply(part, group)  # type: ignore[no-untyped-call]
    return out


def scatter_sequence_sum(whole: Tensor, group: Group) -> Tensor:
    """The sum over ranks of [B, S, ...], of which each keeps its [B, S / n, ...]; gradients are gathered."""
    out: Tensor = _ScatterSum.apply(whole, group)  # type: ignore[no-untyped-call]
    return out


def exchange_rows(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: Group) -> Tensor:
    """All to all of the first dimension: `sent[i]` rows go to rank i, `received[i]` come, in its order."""
    out: Tensor = _Exchange.apply(  # type: ignore[no-untyped-call]
        rows, list(sent), list(received), group
    )
    return out


def exchange_counts(counts: Tensor, group: Group) -> Tensor:
    """int64 [n, ...]: entry i goes to rank i; the result's entry i comes from it."""
    received = torch.empty_like(counts)
    c10d.all_to_all_single(received, counts.contiguous(), group=group)
    return received


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _all_gather(part, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(grads[0], ctx.group), None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _reduce_scatter(whole, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_gather(grads[0], ctx.group), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(grads[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _all_gather(part: Tensor, group: Group) -> Tensor:
    # Sequence first: the library joins along the first dimension.
    part = part.transpose(0, 1).contiguous()
    whole = part.new_empty(part.shape[0] * dist.get_world_size(group), *part.shape[1:])
    c10d.all_gather_into_tensor(whole, part, group=group)
    return whole.transpose(0, 1).contiguous()


def _reduce_scatter(whole: Tensor, group: Group) -> Tensor:
    whole = whole.transpose(0, 1).contiguous()
    part = whole.new_empty(whole.shape[0] // dist.get_world_size(group), *whole.shape[1:])
    c10d.reduce_scatter_tensor(part, whole, group=group)
    return part.transpose(0, 1).contiguous()


def _all_to_all(rows: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
    out = rows.new_empty(sum(received), *rows.shape[1:])
    c10d.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out

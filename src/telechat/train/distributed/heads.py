"""Context parallelism by heads: for attention, ranks exchange a part of the sequence for a part of the heads.

Between the two exchanges each rank has whole rows for some heads, so any attention form can be used. Knows
nothing of models. Shapes: B rows, S positions, s = S / n local ones, H heads, n ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from telechat.ops.attention import AttentionFunction

c10d: Any = dist


def heads_attention(
    q_BsHd: Tensor,
    k_BsKd: Tensor,
    v_BsKd: Tensor,
    group: Any,
    attention: AttentionFunction,
    mask: Tensor | None,
) -> Tensor:
    """Causal attention [B, s, H, d] of this rank's positions, a contiguous part of each row.

    Args:
        attention: computes whole rows; called with n times fewer heads.
        mask: additive [B, 1, S, S] that includes causality, or None for plain causality.
    """
    size = dist.get_world_size(group)
    copies = max(1, size // k_BsKd.shape[2])
    if copies > 1:  # fewer key/value heads than ranks: each is sent to all who need it
        k_BsKd, v_BsKd = (part.repeat_interleave(copies, dim=2) for part in (k_BsKd, v_BsKd))
    q, k, v = (_exchange(part, 2, 1, group) for part in (q_BsHd, k_BsKd, v_BsKd))
    out = attention(q, k, v, mask=mask, is_causal=mask is None)
    return _exchange(out, 1, 2, group)


def _exchange(x: Tensor, cut_dim: int, join_dim: int, group: Any) -> Tensor:
    out: Tensor = _Exchange.apply(x, cut_dim, join_dim, group)  # type: ignore[no-untyped-call]
    return out


class _Exchange(torch.autograd.Function):
    """Cut along one dimension, send part i to rank i, join what comes along another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cut_dim: int, join_dim: int, group: Any) -> Tensor:
        ctx.dims, ctx.group = (cut_dim, join_dim), group
        return _swap(x, cut_dim, join_dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cut_dim, join_dim = ctx.dims
        return _swap(grads[0], join_dim, cut_dim, ctx.group), None, None, None


def _swap(x: Tensor, cut_dim: int, join_dim: int, group: Any) -> Tensor:
    parts = torch.stack(x.chunk(dist.get_world_size(group), dim=cut_dim)).contiguous()
    received = torch.empty_like(parts)
    c10d.all_to_all_single(received, parts, group=group)
    return torch.cat(received.unbind(0), dim=join_dim)

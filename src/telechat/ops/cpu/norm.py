"""RMS norm, with the residual addition before it where there is one."""

from __future__ import annotations

import torch
from torch import Tensor

from telechat.ops.cpu.context import Context
from telechat.ops.cpu.tensors import ELEMENT_TYPES, element_obstacle, require


def obstacle(x: Tensor, weight: Tensor, add: Tensor | None = None) -> str | None:
    """Why `rms_norm` cannot take these, or None."""
    others = [weight] if add is None else [weight, add]
    if any(other.dtype != x.dtype for other in others):
        return "x, weight and addend have different dtypes"
    if weight.shape != x.shape[-1:] or (add is not None and add.shape != x.shape):
        return f"the shapes do not fit x of shape {tuple(x.shape)}"
    return element_obstacle(x, *others)


def rms_norm(context: Context, x: Tensor, weight: Tensor, eps: float, *, add: Tensor | None = None) -> Tensor:
    """weight * round(x / rms(x)) over the last axis of x [..., width]; `add` is first added to x in place."""
    require(obstacle(x, weight, add))
    out = torch.empty_like(x)
    context.library.tc_norm(
        context.handle,
        x.data_ptr(),
        None if add is None else add.data_ptr(),
        out.data_ptr(),
        weight.data_ptr(),
        x.numel() // x.shape[-1],
        x.shape[-1],
        eps,
        ELEMENT_TYPES[x.dtype],
    )
    return out


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, *, add: Tensor | None = None) -> Tensor:
    """The same in plain torch: normalised in fp32, rounded to x's dtype, then scaled."""
    if add is not None:
        x += add
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight

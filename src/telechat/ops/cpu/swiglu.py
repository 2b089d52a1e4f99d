"""silu(gate) * up, element by element."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from telechat.ops.cpu.context import Context
from telechat.ops.cpu.tensors import ELEMENT_TYPES, element_obstacle, require


def obstacle(gate: Tensor, up: Tensor) -> str | None:
    """Why `swiglu` cannot take these, or None."""
    if gate.dtype != up.dtype or gate.shape != up.shape:
        return "gate and up differ in dtype or shape"
    return element_obstacle(gate, up)


def swiglu(context: Context, gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up in their dtype; silu is rounded to it before the product, as torch does."""
    require(obstacle(gate, up))
    out = torch.empty_like(gate)
    context.library.tc_swiglu(
        context.handle,
        gate.data_ptr(),
        up.data_ptr(),
        out.data_ptr(),
        gate.numel(),
        ELEMENT_TYPES[gate.dtype],
    )
    return out


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """The same in plain torch."""
    return F.silu(gate) * up

"""RMS norm, with the residual addition before it where there is one, and SwiGLU, by Triton.

The references are in `telechat.ops.cpu` (`norm`, `swiglu`), beside the kernels in C. Whether the device
can run Triton is said by `launch`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from telechat.ops.cuda.launch import dtype_obstacle, next_power_of_2, on_device

_SWIGLU_BLOCK = 1024
MAX_WIDTH = 32768


def norm_obstacle(x: Tensor, weight: Tensor, add: Tensor | None = None) -> str | None:
    """Why `rms_norm` cannot take these, or None."""
    for other in (weight,) if add is None else (weight, add):
        if other.dtype != x.dtype:
            return "x, weight and addend have different dtypes"
    if x.dim() != 2 or x.stride(1) != 1 or x.shape[1] > MAX_WIDTH:
        return f"x must be [rows, width up to {MAX_WIDTH}], rows contiguous"
    if weight.shape != x.shape[1:] or (add is not None and (add.shape != x.shape or add.stride(1) != 1)):
        return f"the shapes do not fit x of shape {tuple(x.shape)}"
    return dtype_obstacle(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, add: Tensor | None = None) -> Tensor:
    """weight * round(x / rms(x)) over the last axis of x [rows, width]; first x += `add`, in place."""
    from telechat.ops.cuda.kernels import rows

    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = x.shape[1]
    block = next_power_of_2(width)
    other = x if add is None else add
    with on_device(x):
        rows.rms_norm[(x.shape[0],)](
            x,
            other,
            weight,
            out,
            width,
            eps,
            x.stride(0),
            other.stride(0),
            out.stride(0),
            ADD=add is not None,
            BLOCK=block,
            num_warps=min(max(block // 512, 1), 16),
        )
    return out


def swiglu_obstacle(gate: Tensor, up: Tensor) -> str | None:
    """Why `swiglu` cannot take these, or None."""
    if gate.dtype != up.dtype or gate.shape != up.shape or gate.device != up.device:
        return "gate and up differ in dtype, shape or device"
    if gate.dim() != 2 or gate.stride(1) != 1 or up.stride(1) != 1:
        return "gate and up must be [rows, width], rows contiguous"
    return dtype_obstacle(gate.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up in their dtype [rows, width]; both may be halves of one wider tensor."""
    from telechat.ops.cuda.kernels import rows

    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    num_rows, width = gate.shape
    grid = (num_rows, -(-width // _SWIGLU_BLOCK))
    with on_device(gate):
        rows.swiglu[grid](
            gate,
            up,
            out,
            width,
            gate.stride(0),
            up.stride(0),
            out.stride(0),
            BLOCK=_SWIGLU_BLOCK,
            num_warps=4,
        )
    return out

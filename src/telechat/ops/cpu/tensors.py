"""What the kernels accept as tensors, and how C sees it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from telechat.ops.cpu.context import Context, free_later
from telechat.ops.paged import INT4

# Element types of activations and of caches, with their numbers in C.
ELEMENT_TYPES = {torch.float32: 0, torch.bfloat16: 1}
CACHE_TYPES = {**ELEMENT_TYPES, torch.int8: 2, INT4: 3}


def huge_zeros(context: Context, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros of one type in huge pages, where the system gives them: scattered reads find their pages faster.

    Raises:
        MemoryError: there is not so much.
    """
    library, num_bytes = context.library, math.prod(shape) * dtype.itemsize
    address = library.tc_huge_alloc(num_bytes)
    if not address:
        raise MemoryError(f"{num_bytes} bytes for a tensor of shape {tuple(shape)}")
    memory = (ctypes.c_char * num_bytes).from_address(address)
    free_later(memory, library.tc_huge_free, address, num_bytes)  # the tensor holds `memory`
    # Written to now, so that the system gives the memory now and not in the midst of a request.
    return torch.frombuffer(memory, dtype=dtype).view(*shape).zero_()


def element_obstacle(*tensors: Tensor) -> str | None:
    """Why the kernels cannot take these activations or caches, or None."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"the tensor is on {tensor.device}"
        if tensor.dtype not in ELEMENT_TYPES:
            return f"the dtype is {str(tensor.dtype).removeprefix('torch.')}, not float32 or bfloat16"
        if not tensor.is_contiguous():
            return f"the tensor of shape {tuple(tensor.shape)} is not contiguous"
    return None


def vector_obstacle(name: str, vector: Tensor, width: int) -> str | None:
    """Why a norm or bias does not fit, or None."""
    if vector.dtype != torch.float32 or vector.shape != (width,) or not vector.is_contiguous():
        return f"{name} must be contiguous float32 [{width}]"
    return None


def require(obstacle: str | None) -> None:
    """A kernel that was called although something stands in its way is a bug of the caller."""
    assert obstacle is None, obstacle

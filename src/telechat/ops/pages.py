"""Memory for weights that goes back to the system as soon as a weight is freed.

An allocator keeps blocks of some megabytes for itself when they are freed. A load that packs weights one by
one into another layout, giving each back, would end up holding both.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

_LEAST_BYTES = 1 << 20


def empty_pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor; a large one in pages of its own, huge ones where the system has them."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < _LEAST_BYTES or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.empty(shape, dtype=dtype)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)

"""Rows of a table by number, without waking torch's threads.

torch shares such a copy out to its own pool, whose threads then spin for a while in wait for more: beside the
kernels' threads, on the same cores, that costs more than the copy.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]` for a table [N, width] and int64 rows of any shape, each within 0 .. N - 1."""
    needs_gradient = table.requires_grad and torch.is_grad_enabled()
    if table.device.type != "cpu" or needs_gradient or not table.is_contiguous():
        return table[rows]
    table = table.detach()
    # numpy has no bfloat16; the bits are all that matters.
    bits = table.view(torch.int16) if table.element_size() == 2 else table
    return torch.from_numpy(np.take(bits.numpy(), rows.numpy(), axis=0)).view(table.dtype)

"""The next token of every row of logits in one call: penalties, biases, masks, then the best token or a draw.

Knows numbers only; what they mean and where they come from is the sampler's business
(`telechat.engine.sampler`, which has the same in plain torch).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from telechat.ops.cpu.context import Context
from telechat.ops.cpu.tensors import require

# tc_draw of csrc/sample.h: how each row is drawn. Fields ending in _at are addresses of what the caller keeps
# alive: a tc_history (0: none), int32 ids, fp32 biases, uint32 words of one bit per allowed token (0: all).
ROW = np.dtype(
    [
        ("top_p", np.float64),
        ("uniform", np.float64),
        ("top_k", np.int64),
        ("temperature", np.float32),
        ("min_p", np.float32),
        ("repetition", np.float32),
        ("presence", np.float32),
        ("frequency", np.float32),
        ("unused", np.int32),
        ("history_at", np.uintp),
        ("num_biases", np.int64),
        ("bias_ids_at", np.uintp),
        ("biases_at", np.uintp),
        ("allowed_at", np.uintp),
    ],
    align=True,
)


def obstacle(logits_LV: Tensor) -> str | None:
    """Why `RowSampler` cannot take these logits, or None."""
    if not logits_LV.is_cpu:
        return f"the logits are on {logits_LV.device}"
    if logits_LV.dtype != torch.float32 or not logits_LV.is_contiguous():
        return "the logits are not contiguous float32"
    return None


class RowSampler:
    """Samples with the same rows step after step; where they are is looked up once.

    Args:
        context: gives threads, the instruction set level and scratch memory.
        rows: of dtype ROW, one for each row of logits; the caller changes them between steps.
    """

    def __init__(self, context: Context, rows: npt.NDArray[np.void]) -> None:
        assert rows.dtype == ROW and rows.ndim == 1 and rows.flags.c_contiguous
        self.rows = rows
        self._chosen = np.empty(len(rows), np.int32)
        self._context = context
        self._sample = context.library.tc_sample
        self._rows_at, self._chosen_at = rows.ctypes.data, self._chosen.ctypes.data

    def __call__(self, logits_LV: Tensor) -> list[int]:
        """The token of each row, -1 for one whose logits have no finite maximum.

        Args:
            logits_LV: fp32 [L, V]; left with penalties, biases and masks applied.
        """
        require(obstacle(logits_LV))
        num_rows, vocab_size = logits_LV.shape
        assert num_rows == len(self._chosen), (num_rows, len(self._chosen))
        self._sample(
            self._context.handle, self._rows_at, num_rows, logits_LV.data_ptr(), vocab_size, self._chosen_at
        )
        return self._chosen.tolist()

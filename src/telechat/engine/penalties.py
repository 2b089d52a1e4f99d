"""Penalties, biases and masks on rows of logits, in plain torch for any device.

`ops.cpu.sample` does the same in C. Knows nothing of how tokens are chosen afterwards.
Shapes: L rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from telechat.engine.history import History

Mask = npt.NDArray[np.uint32]


class Biases:
    """Numbers added to the logits of some tokens.

    Args:
        biases: token id -> number; minus infinity forbids the token.

    Attributes:
        ids: int32 [N], distinct.
        values: fp32 [N].
        ids_at, values_at: addresses of the two.
    """

    def __init__(self, biases: Mapping[int, float]) -> None:
        self.ids = np.array(list(biases), np.int32)
        self.values = np.array(list(biases.values()), np.float32)
        self.ids_at, self.values_at = self.ids.ctypes.data, self.values.ctypes.data


class Adjustment(NamedTuple):
    """What changes the logits of one row.

    Attributes:
        row: which.
        history: the tokens that penalties apply to, or None without penalties.
        biases: or None.
        allowed: uint32 words with one bit per token that may come, lowest bit first; None allows all.
    """

    row: int
    history: History | None
    biases: Biases | None
    allowed: Mask | None


def adjust(logits_LV: Tensor, adjustments: Sequence[Adjustment], penalties: npt.NDArray[np.void]) -> None:
    """Apply adjustments to fp32 logits in place.

    Args:
        logits_LV: fp32 [L, V].
        adjustments: of some rows.
        penalties: [L] with the fields repetition, presence and frequency.
    """
    _penalise(logits_LV, adjustments, penalties)
    biased = [(one.row, one.biases) for one in adjustments if one.biases is not None]
    if biased:
        rows = np.concatenate([np.full(len(biases.ids), row) for row, biases in biased])
        token_ids = np.concatenate([biases.ids for _, biases in biased])
        values = np.concatenate([biases.values for _, biases in biased])
        index = _tensor(rows, logits_LV), _tensor(token_ids.astype(np.int64), logits_LV)
        logits_LV.index_put_(index, _tensor(values, logits_LV), accumulate=True)
    masked = [(one.row, one.allowed) for one in adjustments if one.allowed is not None]
    if masked:
        words = np.stack([allowed for _, allowed in masked]).view(np.uint8)
        bits = np.unpackbits(words, axis=1, bitorder="little")[:, : logits_LV.shape[1]]
        rows_N = torch.tensor([row for row, _ in masked], device=logits_LV.device)
        is_allowed = _tensor(bits.astype(np.bool_), logits_LV)
        logits_LV[rows_N] = torch.where(is_allowed, logits_LV[rows_N], -torch.inf)


def _penalise(logits_LV: Tensor, adjustments: Sequence[Adjustment], penalties: npt.NDArray[np.void]) -> None:
    penalised = [(one.row, one.history) for one in adjustments if one.history is not None]
    if not penalised:
        return
    rows = np.concatenate([np.full(history.num_seen, row) for row, history in penalised])
    token_ids = np.concatenate([history.ids for _, history in penalised]).astype(np.int64)
    counts = _tensor(np.concatenate([history.counts for _, history in penalised]), logits_LV)

    def each(name: str) -> Tensor:
        return _tensor(penalties[name][rows], logits_LV)

    index = _tensor(rows, logits_LV), _tensor(token_ids, logits_LV)
    values, repetition = logits_LV[index], each("repetition")
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= torch.where(counts > 0, counts * each("frequency") + each("presence"), 0.0)
    logits_LV[index] = values


def _tensor(array: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.device)

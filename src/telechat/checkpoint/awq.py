"""Folders of AWQ tools in the format "gemm": 4 bits with zero points, outputs packed in a shuffled order.

A layer P with N outputs, K inputs and groups of g has `P.qweight` int32 [K, N / 8], `P.qzeros` int32
[K / g, N / 8] and `P.scales` [K / g, N]. Which layers are quantised is read from the tensors. Only reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from telechat.checkpoint.gptq import QWEIGHT, QZEROS, SCALES, Codes
from telechat.checkpoint.packed import Expected, LoadedWeight, from_codes
from telechat.errors import CheckpointError

METHOD = "awq"
# Field t of a word, low bits first, is output 8 r + _OUTPUTS[t].
_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)
_BITS, _PER_WORD = 4, 8
_WEIGHT = ".weight"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class AwqFormat:
    """How a folder's AWQ weights are stored; `group_size` is of inputs, -1 for all of an output."""

    group_size: int

    @classmethod
    def read(cls, section: Mapping[str, Any], file: str) -> AwqFormat:
        """From settings as AutoAWQ and transformers write them.

        Raises:
            CheckpointError: another version than gemm, other bits than 4, or no group size; says `file`.
        """
        version = str(section.get("version", "gemm")).lower()
        if version != "gemm":
            raise CheckpointError(f"{file}: AWQ version {version!r} cannot be read; only gemm can.")
        bits = section.get("bits", section.get("w_bit"))
        if bits != _BITS:
            raise CheckpointError(f"{file}: bits is {bits!r}; AWQ weights have {_BITS}.")
        group_size = section.get("group_size", section.get("q_group_size"))
        if not isinstance(group_size, int) or group_size == 0 or group_size < -1:
            raise CheckpointError(f"{file}: group_size is {group_size!r}; it must be positive, or -1.")
        return cls(group_size)

    @property
    def summary(self) -> str:
        """Method, bits and groups."""
        return f"AWQ, {_BITS} bits in groups of {self.group_size}"

    def expected(self, name: str, shape: tuple[int, ...], stored: Collection[str]) -> Expected:
        """See `PackedFormat`."""
        base = name.removesuffix(_WEIGHT) + "."
        if not {base + QWEIGHT, base + QZEROS, base + SCALES} & set(stored):
            return {}
        rows, columns = shape
        group = columns if self.group_size == -1 else self.group_size
        if rows % _PER_WORD or columns % group:
            raise CheckpointError(
                f"{name} is {rows} x {columns}, which AWQ cannot hold in groups of {group}.",
                hint="Check that config.json and the settings of the quantisation belong to these weights.",
            )
        return {
            base + QWEIGHT: ((columns, rows // _PER_WORD), (torch.int32,)),
            base + QZEROS: ((columns // group, rows // _PER_WORD), (torch.int32,)),
            base + SCALES: ((columns // group, rows), _FLOATS),
        }

    def holds_bias(self, name: str, stored: Collection[str]) -> bool:
        """Never."""
        return False

    def assemble(self, name: str, tensors: Mapping[str, Tensor]) -> LoadedWeight:
        """See `PackedFormat`."""
        base = name.removesuffix(_WEIGHT) + "."
        qweight, qzeros, scales = (tensors[base + suffix] for suffix in (QWEIGHT, QZEROS, SCALES))
        groups = torch.arange(qweight.shape[0]) // (qweight.shape[0] // scales.shape[0])
        return from_codes(Codes(unpack(qweight).t().contiguous(), unpack(qzeros), scales, groups))


def unpack(words_RC: Tensor) -> Tensor:
    """int32 [R, N / 8] -> uint8 [R, N], outputs in their own order."""
    R, C = words_RC.shape
    fields = torch.empty(R, C, _PER_WORD, dtype=torch.uint8)
    for place, output in enumerate(_OUTPUTS):
        fields[:, :, output] = (words_RC >> (place * _BITS)) & 15
    return fields.view(R, C * _PER_WORD)

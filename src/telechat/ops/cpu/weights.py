"""Weights packed for the kernels: int4 and int8 by groups, bf16, fp32, and int8 for int8 activations (w8a8).

bf16 has a second form, `compact`: the same values in 12 bits, since nearly all exponents of a weight are
among sixteen. Where memory sets the pace it is a third faster.

int4 and int8 are symmetric with one fp16 scale per group of 32, 64 or 128 inputs: weight = integer * scale.
w8a8 has one scale per output, and knows how activations become integers. The packed bytes lie in huge pages
where the system gives them. Shapes: N outputs, K inputs, G groups of a row.
"""

from __future__ import annotations

import ctypes
from typing import Final, Literal, Self, get_args

import torch
from torch import Tensor

from telechat.errors import ConfigError
from telechat.ops.cpu import library
from telechat.ops.cpu.context import Context, free_later
from telechat.ops.cpu.library import Weight
from telechat.ops.int8 import DynamicWeight, StaticWeight

WeightFormat = Literal["int4", "int8", "bfloat16", "float32", "compact"]
# What a float matrix can be packed as.
FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
W8A8: Final = "w8a8"
_STORED = (*FORMATS, W8A8)
GROUPS = (32, 64, 128)
_SOURCES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "compact": torch.bfloat16}
# What we round to; the kernels also take -128, which GPTQ files have.
_RANGES = {"int4": (-8, 7), "int8": (-127, 127)}
_TAKEN = {"int4": (-8, 7), "int8": (-128, 127)}


def is_quantised(weight_format: WeightFormat | Literal["w8a8"]) -> bool:
    """Whether a format stores integers and scales by groups."""
    return weight_format in _RANGES


def quantise_reference(
    weight_NK: Tensor, weight_format: WeightFormat, group: int = 32
) -> tuple[Tensor, Tensor]:
    """Round-to-nearest: integers int8 [N, K] and scales fp16 [N, G].

    int4 maps the value of largest magnitude to -8, so that all 16 levels are used; int8 maps it to +-127.
    """
    N, K = weight_NK.shape
    low, high = _RANGES[weight_format]
    num_groups = -(-K // group)
    padded = torch.zeros(N, num_groups * group)
    padded[:, :K] = weight_NK.float()
    grouped = padded.view(N, num_groups, group)
    largest, least = grouped.amax(-1).clamp(min=0), grouped.amin(-1).clamp(max=0)
    extreme = torch.where(largest >= -least, largest, least)
    scales = (extreme / -8 if weight_format == "int4" else extreme.abs() / 127).half()
    divisor = scales.float()[..., None]
    q = torch.where(divisor == 0, 0, grouped / divisor).round().clamp(low, high)
    return q.to(torch.int8).view(N, -1)[:, :K].contiguous(), scales


def dequantise_reference(q_NK: Tensor, scales_NG: Tensor, group: int) -> Tensor:
    """The fp32 matrix [N, K] that integers and scales stand for."""
    return q_NK.float() * scales_NG.float().repeat_interleave(group, dim=1)[:, : q_NK.shape[1]]


class PackedWeight:
    """A weight in the layout that the kernels read; made by `pack`, `pack_quantised` or `pack_w8a8`.

    Attributes:
        weight_format, group: how it is stored; group is 0 where there are no groups.
        rows, columns: outputs and inputs.
        num_bytes: memory it takes.
        struct: what C is given.
    """

    def __init__(
        self,
        context: Context,
        rows: int,
        columns: int,
        weight_format: WeightFormat | Literal["w8a8"],
        group: int,
    ) -> None:
        if weight_format not in _STORED:
            raise ConfigError(
                f"Unknown weight format {weight_format!r}.", hint=f"Choose {', '.join(_STORED)}."
            )
        if is_quantised(weight_format) and group not in GROUPS:
            raise ConfigError(f"group is {group}; the kernels have {', '.join(map(str, GROUPS))}.")
        self.weight_format = weight_format
        self.group = group if is_quantised(weight_format) else 0
        self.rows, self.columns = rows, columns
        self.struct = Weight(
            format=_STORED.index(weight_format), group=self.group, rows=rows, columns=columns
        )
        self._context, self._library = context, context.library
        self.num_bytes = 0
        if weight_format != "compact":  # whose size depends on its values
            num_bytes: int = self._library.tc_weight_init(ctypes.byref(self.struct))
            self._take(self._library.tc_huge_alloc(num_bytes), num_bytes)

    def _take(self, address: int | None, num_bytes: int) -> Self:
        """Own this memory."""
        if not address:
            raise MemoryError(f"{num_bytes} bytes for a weight of {self.rows} x {self.columns}")
        self.struct.data, self.num_bytes = address, num_bytes
        free_later(self, self._library.tc_huge_free, address, num_bytes)
        return self

    def _compacted(self) -> PackedWeight:
        """This bfloat16 weight in 12 bits, or as it is."""
        made = PackedWeight(self._context, self.rows, self.columns, "compact", 0)
        num_bytes: int = self._library.tc_compact(
            self._context.handle, ctypes.byref(self.struct), ctypes.byref(made.struct)
        )
        return made._take(made.struct.data, num_bytes) if num_bytes else self

    @classmethod
    def pack(
        cls, context: Context, weight_NK: Tensor, weight_format: WeightFormat, group: int = 32
    ) -> PackedWeight:
        """Pack a float matrix [N, K] (float32, bfloat16 or float16), rounding it to nearest where needed.

        A matrix with too many rare exponents to be `compact` is packed as plain bfloat16.
        """
        assert weight_NK.dtype in _SOURCES, weight_NK.dtype
        if weight_format == "compact":
            return cls.pack(context, weight_NK, "bfloat16")._compacted()
        weight_NK = weight_NK.detach().cpu().contiguous()
        packed = cls(context, weight_NK.shape[0], weight_NK.shape[1], weight_format, group)
        packed._library.tc_pack(
            context.handle, ctypes.byref(packed.struct), weight_NK.data_ptr(), _SOURCES[weight_NK.dtype]
        )
        return packed

    @classmethod
    def pack_quantised(
        cls, context: Context, q_NK: Tensor, scales_NG: Tensor, weight_format: WeightFormat, group: int
    ) -> PackedWeight:
        """Pack integers int8 [N, K] within the format's range and scales fp16 [N, ceil(K / group)]."""
        N, K = q_NK.shape
        assert is_quantised(weight_format) and q_NK.dtype == torch.int8 and scales_NG.dtype == torch.float16
        assert scales_NG.shape == (N, -(-K // group)), scales_NG.shape
        low, high = _TAKEN[weight_format]
        if q_NK.numel() and (int(q_NK.amin()) < low or int(q_NK.amax()) > high):
            raise ConfigError(f"{weight_format} holds integers from {low} to {high}; others were given.")
        q_NK, scales_NG = q_NK.contiguous(), scales_NG.contiguous()
        packed = cls(context, N, K, weight_format, group)
        packed._library.tc_pack_quantised(
            context.handle, ctypes.byref(packed.struct), q_NK.data_ptr(), scales_NG.data_ptr()
        )
        return packed

    @classmethod
    def pack_w8a8(cls, context: Context, weight: StaticWeight | DynamicWeight) -> PackedWeight:
        """Pack int8 weights that int8 activations go with; a bias within `quant_bias` stays there."""
        q_NK = weight.weight.contiguous()
        packed = cls(context, q_NK.shape[0], q_NK.shape[1], W8A8, 0)
        offsets: Tensor | None = None
        if isinstance(weight, StaticWeight):
            scales, offsets = weight.deq_scale.float().contiguous(), weight.quant_bias.contiguous()
            packed.struct.range = library.Range(weight.inputs.scale, weight.inputs.offset, by_row=0)
        else:
            scales = weight.scales.float().contiguous()
            packed.struct.range = library.Range(by_row=1)
        assert q_NK.dtype == torch.int8 and scales.shape == (packed.rows,), scales.shape
        packed._library.tc_pack_w8a8(
            context.handle,
            ctypes.byref(packed.struct),
            q_NK.data_ptr(),
            scales.data_ptr(),
            None if offsets is None else offsets.data_ptr(),
        )
        return packed

    def take_rows(self, rows_T: Tensor) -> Tensor:
        """Some rows [T, K] of a weight in floats, in its dtype; rows are int64 [T].

        Raises:
            IndexError: there is no such row.
        """
        assert self.weight_format in _DTYPES, self.weight_format
        if rows_T.numel() and not 0 <= int(rows_T.min()) <= int(rows_T.max()) < self.rows:
            raise IndexError(f"rows {int(rows_T.min())} to {int(rows_T.max())} of {self.rows}")
        rows_T = rows_T.contiguous()
        out = torch.empty(len(rows_T), self.columns, dtype=_DTYPES[self.weight_format])
        self._library.tc_take_rows(
            self._context.handle,
            ctypes.byref(self.struct),
            rows_T.data_ptr(),
            len(rows_T),
            out.data_ptr(),
        )
        return out

    def unpack(self) -> Tensor:
        """The fp32 matrix [N, K] that the packed weight, not w8a8, stands for."""
        assert self.weight_format != W8A8, "ask the weight that was packed"
        out = torch.empty(self.rows, self.columns)
        self._library.tc_unpack(ctypes.byref(self.struct), out.data_ptr())
        return out


def weight_obstacle(name: str, weight: PackedWeight, rows: int, columns: int) -> str | None:
    """Why a weight does not fit where [rows, columns] is wanted, or None."""
    if (weight.rows, weight.columns) != (rows, columns):
        return f"{name} is {weight.rows} x {weight.columns}, not {rows} x {columns}"
    return None

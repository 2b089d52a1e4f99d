"""Rotary position embedding with TeleChat's length-dependent base and attention scaling.

The effective length n of a call decides two numbers: `alpha`, which stretches the base (NTK-aware), and
`mscale`, which multiplies cos and sin. Tables are rounded to fp16 before mscale is applied, as the official
code does: checkpoints were trained with them. Knows nothing of caches or of which mode a model runs in; it is
told the lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from telechat.errors import ConfigError
from telechat.ops.rows import take_rows

RopeScheme = Literal["telechat", "none", "ntk-static", "pi", "mindformers-dynamic"]


@dataclass(frozen=True, kw_only=True)
class RopeSettings:
    """Everything that determines a rotary table, besides the length.

    Attributes:
        base: rotary base (theta) before any stretching.
        scheme: `telechat` stretches by length; `none` never; `ntk-static` multiplies the base by `factor`;
            `pi` divides positions by `factor`; `mindformers-dynamic` is MindFormers' DYNAMIC_NTK.
        base_length: length at which the NTK rule starts to stretch (`base_seqlen`), in tokens.
        training_length: length up to which mscale is 1 (`training_seqlen`), in tokens.
        factor: scaling factor of `ntk-static` and `pi`.
        table_dtype: `float16` rounds tables as the official torch code does; `float32` keeps them exact.
    """

    base: float = 10000.0
    scheme: RopeScheme = "telechat"
    base_length: int = 8192
    training_length: int = 8192
    factor: float = 1.0
    table_dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        if self.scheme not in get_args(RopeScheme):
            raise ConfigError(
                f"rope scheme '{self.scheme}' is unknown.",
                hint=f"Choose one of {', '.join(get_args(RopeScheme))}.",
            )
        for name in ("base", "base_length", "training_length", "factor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigError(f"rope {name} is {value!r}; it must be a positive number.")
        if self.table_dtype not in ("float16", "float32"):
            raise ConfigError(f"rope table_dtype is {self.table_dtype!r}; it must be float16 or float32.")

    def stretch(self, length: int) -> tuple[int, float]:
        """(alpha, mscale) for an effective length of `length` tokens; alpha before its exponent d/(d-2)."""
        if self.scheme not in ("telechat", "mindformers-dynamic"):
            return 1, 1.0
        n = max(length, self.training_length)
        alpha = max(2 ** math.ceil(math.log2(n / self.base_length) + 1) - 1, 1)
        reference = self.training_length if self.scheme == "telechat" else self.base_length
        mscale = 0.1 * math.log(n / reference) + 1 if n > reference else 1.0
        return alpha, mscale

    def inverse_frequencies(self, head_dim: int, alpha: int) -> Tensor:
        """fp32 [head_dim / 2] angular step per position for a stretch of `alpha`."""
        factor = self.factor if self.scheme == "ntk-static" else 1.0
        base = self.base * factor * alpha ** (head_dim / (head_dim - 2))
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies: Tensor = 1.0 / (base**exponents)
        return frequencies


class RotaryTables:
    """Cosine and sine tables of one model, grown on demand and kept per stretch and device."""

    def __init__(self, settings: RopeSettings, head_dim: int) -> None:
        self.settings = settings
        self.head_dim = head_dim
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def rows(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32 [*positions.shape, head_dim], for positions in a call of effective `length`."""
        alpha, mscale = self.settings.stretch(length)
        cos, sin = self._table(alpha, length, positions.device)
        cos, sin = take_rows(cos, positions), take_rows(sin, positions)
        if mscale != 1.0:
            cos, sin = cos * mscale, sin * mscale
        return cos.float(), sin.float()

    def lookup(self, positions_BS: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """cos and sin fp32 [B, S, d] where row b belongs to a sequence of effective length lengths[b].

        One table serves all rows whose lengths stretch alike, which is every row within the training length.
        """
        distinct = {max(n, self.settings.training_length) for n in lengths}
        stretches = {self.settings.stretch(n) for n in distinct}
        if len(stretches) == 1:
            return self.rows(positions_BS, max(lengths))
        parts = [self.rows(positions_BS[b : b + 1], n) for b, n in enumerate(lengths)]
        return torch.cat([cos for cos, _ in parts]), torch.cat([sin for _, sin in parts])

    def _table(self, alpha: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Unscaled (cos, sin) of at least max(length, training_length) rows in `table_dtype`."""
        key = (alpha, device)
        known = self._tables.get(key)
        if known is None or known[0].shape[0] < length:
            # Growing in steps of 1.25 keeps decoding past the training length from rebuilding at each token.
            rows = max(length, self.settings.training_length, int(1.25 * known[0].shape[0]) if known else 0)
            known = self._tables[key] = self._build(alpha, rows, device)
        return known

    def _build(self, alpha: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        positions = torch.arange(rows, dtype=torch.float32)
        if self.settings.scheme == "pi":
            positions = positions / self.settings.factor
        angles = torch.outer(positions, self.settings.inverse_frequencies(self.head_dim, alpha))
        angles = torch.cat([angles, angles], dim=-1)
        dtype = getattr(torch, self.settings.table_dtype)
        return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def rotate(x_BSNd: Tensor, cos_BSd: Tensor, sin_BSd: Tensor) -> Tensor:
    """Rotate pairs (j, j + d/2) of every head in fp32; returns x's dtype. cos and sin are fp32 [B, S, d]."""
    x = x_BSNd.float()
    first, second = x.chunk(2, dim=-1)
    rotated = x * cos_BSd[:, :, None] + torch.cat([-second, first], dim=-1) * sin_BSd[:, :, None]
    return rotated.to(x_BSNd.dtype)

"""Weights of 8 or 4 bits with a scale per group of inputs: how they are stored, made and read.

The stored form is the same everywhere: symmetric, weight = integer * scale, one fp16 scale for each 32, 64 or
128 inputs of an output. Products with such weights are in `quantized_products`. Shapes: N outputs, K inputs,
G groups of an output. Knows nothing of layers, files or calibration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from telechat.errors import ConfigError

GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 32
# Name as users type it -> bits.
SCHEME_BITS = {"int8": 8, "int4": 4}
SCALE_DTYPE = torch.float16
_RANGES = {8: (-127, 127), 4: (-8, 7)}
_STORED = {8: torch.int8, 4: torch.uint8}
_NIBBLE_OFFSET = 8
# Elements rounded at a time: bounds the fp32 intermediates whatever the weight's size.
_ROUNDED_AT_ONCE = 2**21
# Larger pieces than would suit one core: each is an operation that all threads meet at.
_UNPACKED_AT_ONCE = 2**22

Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]


@dataclass(frozen=True)
class WeightScheme:
    """How weights are quantised: bits, 8 or 4, and inputs per scale."""

    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if self.bits not in _RANGES:
            raise ConfigError(f"bits is {self.bits}; weights are quantised to 8 or 4.")
        if self.group_size not in GROUP_SIZES:
            raise ConfigError(
                f"group_size is {self.group_size}; it must be one of {', '.join(map(str, GROUP_SIZES))}."
            )

    @classmethod
    def named(cls, name: str, group_size: int | None = None) -> WeightScheme:
        """The scheme of `int8` or `int4`, in groups of 32 unless told otherwise.

        Raises:
            ConfigError: an unknown name or group size.
        """
        if name not in SCHEME_BITS:
            raise ConfigError(f"quantize is {name!r}; choose {' or '.join(SCHEME_BITS)}.")
        return cls(SCHEME_BITS[name], DEFAULT_GROUP_SIZE if group_size is None else group_size)

    @property
    def name(self) -> str:
        """`int8` or `int4`."""
        return f"int{self.bits}"

    @property
    def bits_per_weight(self) -> float:
        """Memory of a weight with its share of the scale."""
        return self.bits + 8 * SCALE_DTYPE.itemsize / self.group_size

    def obstacle(self, columns: int) -> str | None:
        """Why a weight with so many inputs cannot be stored, or None."""
        if columns % self.group_size == 0:
            return None
        return f"its {columns} inputs do not divide into groups of {self.group_size}"

    def fitting_group_sizes(self, columns: int) -> list[int]:
        """Group sizes that would do for so many inputs."""
        return [size for size in GROUP_SIZES if columns % size == 0]


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix of integers and scales.

    Attributes:
        scheme: bits and group size.
        qweight: 8 bits: int8 [N, K]; -128 occurs in files of others. 4 bits: uint8 [N, K/2], two integers of
            -8 to 7 in a byte, each with 8 added, the earlier one in the lower half.
        scales: fp16 [N, G]. Negative ones occur.
    """

    scheme: WeightScheme
    qweight: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        N, G = self.scales.shape
        expected = (N, G * self.scheme.group_size * self.scheme.bits // 8)
        assert tuple(self.qweight.shape) == expected, (self.qweight.shape, self.scales.shape)
        assert self.qweight.dtype == _STORED[self.scheme.bits], self.qweight.dtype
        assert self.scales.dtype == SCALE_DTYPE, self.scales.dtype

    @classmethod
    def allocate(
        cls,
        rows: int,
        columns: int,
        scheme: WeightScheme,
        *,
        device: torch.device | str | None = None,
        empty: Empty | None = None,
    ) -> QuantizedWeight:
        """Uninitialised. `empty` makes its tensors where they shall not be torch's own."""
        assert scheme.obstacle(columns) is None, (columns, scheme)
        make = empty or (lambda shape, dtype: torch.empty(shape, dtype=dtype, device=device))
        return cls(
            scheme,
            make((rows, columns * scheme.bits // 8), _STORED[scheme.bits]),
            make((rows, columns // scheme.group_size), SCALE_DTYPE),
        )

    @classmethod
    def from_integers(cls, q_NK: Tensor, scales_NG: Tensor, scheme: WeightScheme) -> QuantizedWeight:
        """Store integers int8 [N, K] within the scheme's range and their scales."""
        return cls(scheme, pack_integers(q_NK, scheme.bits), scales_NG.to(SCALE_DTYPE))

    @property
    def rows(self) -> int:
        """Outputs."""
        return self.scales.shape[0]

    @property
    def columns(self) -> int:
        """Inputs."""
        return self.scales.shape[1] * self.scheme.group_size

    @property
    def num_bytes(self) -> int:
        """Memory of integers and scales."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.qweight, self.scales))

    def integers(self) -> Tensor:
        """The integers, int8 [N, K]; the stored tensor itself at 8 bits."""
        return unpack_integers(self.qweight, self.scheme.bits)

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [N, K] that is meant."""
        grouped = self.integers().to(dtype).view(self.rows, -1, self.scheme.group_size)
        return (grouped * self.scales.to(dtype)[..., None]).view(self.rows, self.columns)

    def take_rows(self, start: int, stop: int) -> QuantizedWeight:
        """Outputs `start` to `stop`, as views."""
        return QuantizedWeight(self.scheme, self.qweight[start:stop], self.scales[start:stop])

    def take_columns(self, start: int, stop: int) -> QuantizedWeight:
        """Inputs `start` to `stop`, which must be bounds of groups; as views."""
        group, per_byte = self.scheme.group_size, 8 // self.scheme.bits
        assert start % group == 0 and stop % group == 0, (start, stop, group)
        return QuantizedWeight(
            self.scheme,
            self.qweight[:, start // per_byte : stop // per_byte],
            self.scales[:, start // group : stop // group],
        )


@dataclass(frozen=True)
class OrderedWeight:
    """A quantised weight whose inputs stand in another order, so that those of a group are neighbours.

    Attributes:
        weight: column j belongs to input order[j] of the layer.
        order: int64 [K], each input once.
    """

    weight: QuantizedWeight
    order: Tensor

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [N, K] that is meant, inputs in the layer's order."""
        stored = self.weight.dequantise(dtype)
        return torch.empty_like(stored).index_copy_(1, self.order, stored)


def pack_integers(q_NK: Tensor, bits: int) -> Tensor:
    """int8 [N, K] -> what `QuantizedWeight.qweight` holds."""
    assert q_NK.dtype == torch.int8, q_NK.dtype
    if bits == 8:
        return q_NK
    codes = (q_NK + _NIBBLE_OFFSET).view(torch.uint8)
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def unpack_integers(qweight: Tensor, bits: int) -> Tensor:
    """What `QuantizedWeight.qweight` holds -> int8 [N, K]."""
    if bits == 8:
        return qweight
    codes = torch.empty(*qweight.shape, 2, dtype=torch.int8, device=qweight.device)
    # In pieces: large intermediates of many sizes would stay in the allocator's keeping.
    step = max(1, _UNPACKED_AT_ONCE // qweight.shape[1])
    for start in range(0, qweight.shape[0], step):
        piece, out = qweight[start : start + step], codes[start : start + step]
        out[..., 0] = piece & 15
        out[..., 1] = piece >> 4
        out.sub_(_NIBBLE_OFFSET)
    return codes.view(qweight.shape[0], -1)


@torch.no_grad()
def round_to_nearest(
    weight_NK: Tensor, scheme: WeightScheme, *, out: QuantizedWeight | None = None
) -> QuantizedWeight:
    """Round a float matrix [N, K] to the nearest integers, some rows at a time.

    4 bits map the value of largest magnitude of a group to -8, so that all 16 levels are used; 8 bits map it
    to 127 or -127. Integers are found with the scale as it is stored, rounded to fp16.

    Raises:
        ConfigError: the weight holds values that are not finite.
    """
    N, K = weight_NK.shape
    device = weight_NK.device
    result = out or QuantizedWeight.allocate(N, K, scheme, device=device)
    low, high = _RANGES[scheme.bits]
    for start in range(0, N, max(1, _ROUNDED_AT_ONCE // K)):
        rows = slice(start, min(N, start + max(1, _ROUNDED_AT_ONCE // K)))
        grouped = weight_NK[rows].float().view(-1, K // scheme.group_size, scheme.group_size)
        largest, least = grouped.amax(-1).clamp(min=0), grouped.amin(-1).clamp(max=0)
        if not bool((largest.isfinite() & least.isfinite()).all()):
            raise ConfigError("The weight holds numbers that are not finite.")
        if scheme.bits == 4:
            scales = torch.where(largest >= -least, largest, least) / low
        else:
            scales = torch.maximum(largest, -least) / high
        result.scales[rows] = scales.to(SCALE_DTYPE)
        divisor = result.scales[rows].to(device).float()[..., None]
        # A group of zeros, or of values too small for a scale, is 0.
        q = torch.where(divisor == 0, 0, grouped / divisor).round_().clamp_(low, high).to(torch.int8)
        result.qweight[rows] = pack_integers(q.view(-1, K), scheme.bits)
    return result

"""Products of int8 activations with int8 weights, exact sums in int32.

Static: one scale and offset for all activations of a layer, fixed beforehand; the offset's share and the bias
are folded into one integer per output. Dynamic: a scale per row of activations, found as it comes. Shapes:
M rows, N outputs, K inputs. Knows nothing of layers, files or calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from telechat.device import CPU

LOW, HIGH = -128, 127
# A channel of zeros: any scale means the same.
_EMPTY_SCALE = 1.0
# Activations turned into integers at a time: the piece stays in the second-level cache of a core.
_QUANTISED_AT_ONCE = 2**17
# The largest integer of the weights that are not protected, where weights are sparse.
_SMALL_HIGH = 7


@dataclass(frozen=True)
class ActivationRange:
    """How a layer's inputs become int8: q = clamp(round(x / scale + offset)), x ~ (q - offset) * scale."""

    scale: float
    offset: int

    @classmethod
    def spanning(cls, low: float, high: float, dtype: torch.dtype = torch.float32) -> ActivationRange:
        """For inputs from `low` to `high`, widened to contain 0; the scale is one that `dtype` holds."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / (HIGH - LOW) or _EMPTY_SCALE
        scale = float(torch.tensor(scale, dtype=torch.float64).to(dtype))
        if scale == 0:
            scale = float(torch.finfo(dtype).smallest_normal)
        return cls(scale, max(LOW, min(HIGH, round(LOW - low / scale))))

    def quantise(self, x: Tensor, *, is_unsigned: bool = False) -> Tensor:
        """int8 of any shape; or uint8, each 128 more."""
        shift = -LOW if is_unsigned else 0
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty(rows.shape, dtype=torch.uint8 if is_unsigned else torch.int8, device=x.device)
        step = max(1, _QUANTISED_AT_ONCE // rows.shape[1])
        for start in range(0, rows.shape[0], step):
            piece = rows[start : start + step].to(torch.float32, copy=True)
            piece.div_(self.scale).add_(self.offset + shift).round_().clamp_(LOW + shift, HIGH + shift)
            out[start : start + step] = piece
        return out.view(x.shape)


def quantise_rows(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] and fp32 scales [N] of a float weight, symmetric; a row of zeros gets the scale 1."""
    weight = weight_NK.float()
    scales = weight.abs().amax(1) / HIGH
    scales = torch.where(scales == 0, _EMPTY_SCALE, scales)
    return (weight / scales[:, None]).round_().clamp_(LOW, HIGH).to(torch.int8), scales


def quantise_rows_sparsely(weight_NK: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """As `quantise_rows`, but most integers are within -8 to 7.

    The largest `fraction` of the matrix's weights use all 8 bits; the others set each row's scale.
    """
    weight = weight_NK.float()
    num_protected = max(1, round(fraction * weight.numel()))
    threshold = weight.abs().flatten().kthvalue(weight.numel() - num_protected).values
    small = torch.where(weight.abs() <= threshold, weight.abs(), 0.0).amax(1)
    # The protected ones must fit, too.
    scales = torch.maximum(small / _SMALL_HIGH, weight.abs().amax(1) / HIGH)
    scales = torch.where(scales == 0, _EMPTY_SCALE, scales)
    return (weight / scales[:, None]).round_().clamp_(LOW, HIGH).to(torch.int8), scales


@dataclass(frozen=True)
class StaticWeight:
    """A layer with static activations: y = (q @ weight.T + quant_bias) * deq_scale.

    Attributes:
        weight: int8 [N, K].
        deq_scale: fp32 [N], the activations' scale times the output's.
        quant_bias: int32 [N]: the bias over deq_scale, less offset * sum of the output's integers.
        inputs: how activations become int8.
    """

    weight: Tensor
    deq_scale: Tensor
    quant_bias: Tensor
    inputs: ActivationRange

    @classmethod
    def from_float(
        cls,
        weight_NK: Tensor,
        bias_N: Tensor | None,
        inputs: ActivationRange,
        *,
        fraction: float | None = None,
    ) -> StaticWeight:
        """Quantise a float weight and fold its bias; sparsely, where a `fraction` to protect is given."""
        if fraction is None:
            integers, scales = quantise_rows(weight_NK)
        else:
            integers, scales = quantise_rows_sparsely(weight_NK, fraction)
        deq_scale = inputs.scale * scales
        sums = integers.sum(1, dtype=torch.int64)
        folded = (
            torch.zeros(len(sums), dtype=torch.float64) if bias_N is None else bias_N.double() / deq_scale
        )
        quant_bias = (folded - inputs.offset * sums).round().clamp(-(2**31), 2**31 - 1)
        return cls(integers, deq_scale, quant_bias.to(torch.int32), inputs)

    def to(self, device: torch.device) -> StaticWeight:
        """A copy there."""
        return StaticWeight(
            self.weight.to(device), self.deq_scale.to(device), self.quant_bias.to(device), self.inputs
        )

    def copied(self) -> StaticWeight:
        """The same in memory of its own."""
        weight = self.weight.clone(memory_format=torch.contiguous_format)
        return StaticWeight(weight, self.deq_scale.clone(), self.quant_bias.clone(), self.inputs)

    def take_rows(self, start: int, stop: int) -> StaticWeight:
        """Outputs start .. stop-1, as views."""
        rows = slice(start, stop)
        return StaticWeight(self.weight[rows], self.deq_scale[rows], self.quant_bias[rows], self.inputs)

    def take_columns(self, start: int, stop: int, *, adds_bias: bool) -> StaticWeight:
        """Inputs start .. stop-1, as views.

        Args:
            adds_bias: keep quant_bias; zeros otherwise. Of parts whose sums are added up one must keep it: it
                holds the bias and the offset's share of all inputs.
        """
        quant_bias = self.quant_bias if adds_bias else torch.zeros_like(self.quant_bias)
        return StaticWeight(self.weight[:, start:stop], self.deq_scale, quant_bias, self.inputs)

    def plain_bias(self) -> Tensor:
        """fp32 [N]: the bias without the offset's share."""
        sums = self.weight.sum(1, dtype=torch.int64)
        return ((self.quant_bias.long() + self.inputs.offset * sums).double() * self.deq_scale).float()

    def dequantise(self) -> Tensor:
        """fp32 [N, K]: the weight that is meant."""
        return self.weight.float() * (self.deq_scale / self.inputs.scale)[:, None]


@dataclass(frozen=True)
class DynamicWeight:
    """A layer with an activation scale per row: int8 weight [N, K], fp32 scales [N]."""

    weight: Tensor
    scales: Tensor

    def to(self, device: torch.device) -> DynamicWeight:
        """A copy there."""
        return DynamicWeight(self.weight.to(device), self.scales.to(device))

    def copied(self) -> DynamicWeight:
        """The same in memory of its own."""
        weight = self.weight.clone(memory_format=torch.contiguous_format)
        return DynamicWeight(weight, self.scales.clone())

    def take_rows(self, start: int, stop: int) -> DynamicWeight:
        """Outputs start .. stop-1, as views."""
        return DynamicWeight(self.weight[start:stop], self.scales[start:stop])

    def take_columns(self, start: int, stop: int) -> DynamicWeight:
        """Inputs start .. stop-1, as views."""
        return DynamicWeight(self.weight[:, start:stop], self.scales)

    def dequantise(self) -> Tensor:
        """fp32 [N, K]: the weight that is meant."""
        return self.weight.float() * self.scales[:, None]


def accumulate(q_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """int8 [M, K] @ int8 [N, K].T -> int32 [M, N], exact."""
    if q_MK.device.type == CPU.type:
        out: Tensor = torch._int_mm(q_MK.contiguous(), weight_NK.t())
        return out
    # fp64 holds every such sum.
    return (q_MK.double() @ weight_NK.double().t()).to(torch.int32)


class StaticReference:
    """The product as it is defined; on any device."""

    name = "int8 sums"

    def __init__(self, weight: StaticWeight) -> None:
        self.weight = weight

    def __call__(self, x_MK: Tensor) -> Tensor:
        """[M, K] -> [M, N] in x's dtype."""
        weight = self.weight
        sums = accumulate(weight.inputs.quantise(x_MK), weight.weight)
        return ((sums + weight.quant_bias).float() * weight.deq_scale).to(x_MK.dtype)


class OneDnnProduct:
    """oneDNN's int8 product, which takes unsigned activations."""

    name = "onednn int8"

    def __init__(self, weight: StaticWeight) -> None:
        self.inputs = weight.inputs
        # It takes the weight untransposed, and a transposed one without complaint.
        self.packed = torch.ops.onednn.qlinear_prepack(weight.weight.contiguous(), None)
        self.scales = (weight.deq_scale / weight.inputs.scale).contiguous()
        self.zeros = torch.zeros(len(self.scales), dtype=torch.int32)
        self.bias = weight.plain_bias()

    @staticmethod
    def obstacle(device: torch.device) -> str | None:
        """Why this form cannot run, or None."""
        if device.type != CPU.type:
            return f"the weights are on {device.type}"
        return _onednn_obstacle()

    def __call__(self, x_MK: Tensor) -> Tensor:
        """[M, K] -> [M, N] in x's dtype."""
        out_dtype = x_MK.dtype if x_MK.dtype == torch.bfloat16 else torch.float32
        return self.multiply(self.inputs.quantise(x_MK, is_unsigned=True), out_dtype).to(x_MK.dtype)

    def multiply(self, q_MK: Tensor, out_dtype: torch.dtype) -> Tensor:
        """Activations that are integers already, uint8 [M, K] -> [M, N], fp32 or bf16."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            q_MK,
            self.inputs.scale,
            self.inputs.offset - LOW,
            self.packed,
            self.scales,
            self.zeros,
            self.bias,
            1.0,
            0,
            out_dtype,
            "none",
            [],
            "",
        )
        return out


@cache
def _onednn_obstacle() -> str | None:
    if not (hasattr(torch.ops.onednn, "qlinear_prepack") and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        return "this torch has no oneDNN int8 product"
    # Before VNNI x86 adds two products of 8 bits in 16, which saturate: the largest ones tell.
    length = 64
    largest = StaticWeight.from_float(torch.full((16, length), float(HIGH)), None, ActivationRange(1.0, 0))
    inputs = torch.full((1, length), HIGH - LOW, dtype=torch.uint8)
    sums = OneDnnProduct(largest).multiply(inputs, torch.float32)
    is_exact = bool((sums == HIGH * HIGH * length).all())
    return None if is_exact else "oneDNN's int8 product is inexact without VNNI"


def dynamic_product(x_MK: Tensor, weight: DynamicWeight) -> Tensor:
    """[M, K] -> [M, N] in x's dtype, each row of activations with a scale of its own."""
    x = x_MK.float()
    row_scales = (x.abs().amax(1, keepdim=True) / HIGH).clamp_(min=1e-12)
    q = (x / row_scales).round_().clamp_(LOW, HIGH).to(torch.int8)
    return (accumulate(q, weight.weight).float() * row_scales * weight.scales).to(x_MK.dtype)

"""GPTQ: weights rounded one input after another, each time moving the error to inputs not yet rounded.

The method of Frantar and others (2022). Grids are chosen by weighted square error (`grid`), the weights being
what the calibration inputs say (`hessian`). Knows single layers; files and models are in `blockwise`.
Shapes: N outputs, K inputs, g inputs of a group, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from telechat.checkpoint.gptq import V1, Codes, check_bits
from telechat.errors import ConfigError
from telechat.quant.grid import GridRule
from telechat.quant.hessian import Hessian, inverse_factor

# Columns whose errors reach the later ones together, as one product.
_COLUMNS_TOGETHER = 128
_WORD = 32


@dataclass(frozen=True, kw_only=True)
class GptqSettings:
    """How one layer is rounded.

    Attributes:
        bits: 2, 4 or 8.
        group_size: inputs that share a scale; -1: all of an output.
        sym: the zero point is the middle code.
        act_order: round the inputs that matter most first.
        static_groups: with `act_order`, groups are neighbours all the same, and their grids are fixed
            beforehand from the weights as they were. Products stay fast; at 8 bits the error is a fifth
            larger.
        damp: share of the mean of H's diagonal that is added to it.
        search: look for the grid of least error, rather than one that spans all weights.
        least_zero: see `GridRule`.
    """

    bits: int = 4
    group_size: int = 128
    sym: bool = True
    act_order: bool = False
    static_groups: bool = False
    damp: float = 0.01
    search: bool = True
    least_zero: int = 1

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.group_size != -1 and self.group_size < 1:
            raise ConfigError(
                f"group_size is {self.group_size}; it must be positive, or -1 for one scale per output."
            )
        if not 0 < self.damp < 1:
            raise ConfigError(f"damp is {self.damp}; it must be between 0 and 1.")

    @property
    def rule(self) -> GridRule:
        """How grids are chosen."""
        return GridRule(self.bits, self.sym, self.search, self.least_zero)

    def group_of(self, columns: int) -> int:
        """Inputs of a group of a layer with so many."""
        return columns if self.group_size == -1 else self.group_size

    def obstacle(self, rows: int, columns: int) -> str | None:
        """Why a weight [rows, columns] cannot be stored, or None."""
        per_word = _WORD // self.bits
        if columns % self.group_of(columns):
            return f"its {columns} inputs do not divide into groups of {self.group_size}"
        for count, what in ((columns, "inputs"), (rows, "outputs")):
            if count % per_word:
                return f"its {count} {what} do not fill words of {per_word} codes of {self.bits} bits"
        return None


@dataclass(frozen=True)
class QuantisedLayer:
    """What became of a weight.

    Attributes:
        codes: the integers, scales and zero points.
        loss: trace(E H E^T) for the damped H: the square error of all outputs at all calibration tokens.
        damp: the damping that was used; more than asked for where H could not be inverted otherwise.
    """

    codes: Codes
    loss: float
    damp: float


def quantize_linear(
    weight: Tensor,
    inputs: Tensor,
    bits: int,
    group_size: int,
    sym: bool,
    act_order: bool,
    damp: float = 0.01,
    *,
    static_groups: bool = False,
) -> dict[str, Tensor]:
    """Quantise the weight of one linear layer.

    Args:
        weight: [N, K], floating.
        inputs: [tokens, K], floating: what the layer reads during calibration.
        bits, group_size, sym, act_order, damp, static_groups: see `GptqSettings`.

    Returns:
        `qweight`, `qzeros`, `scales` fp16 and `g_idx` as AutoGPTQ's first format stores them, on the CPU.

    Raises:
        ConfigError: numbers that are not finite, sizes that do not fit, settings that are not supported.
    """
    settings = GptqSettings(
        bits=bits,
        group_size=group_size,
        sym=sym,
        act_order=act_order,
        damp=damp,
        static_groups=static_groups,
    )
    if inputs.shape[-1] != weight.shape[1]:
        raise ConfigError(f"The inputs have {inputs.shape[-1]} columns, the weight {weight.shape[1]}.")
    hessian = Hessian(weight.shape[1])
    hessian.add(inputs.cpu())
    return quantise_weight(weight.cpu(), hessian, settings).codes.pack(bits, V1)


def dequantize(tensors: Mapping[str, Tensor], bits: int, checkpoint_format: str = V1) -> Tensor:
    """The fp32 weight [N, K] that packed tensors mean.

    Args:
        tensors: `qweight`, `qzeros`, `scales` and, unless groups follow one another, `g_idx`.
        checkpoint_format: `gptq`, which stores zero points less 1, or `gptq_v2`.

    Raises:
        ConfigError: bits or format that are not supported.
        CheckpointError: tensors missing or of shapes that do not belong together.
    """
    return Codes.unpack(tensors, bits, checkpoint_format).dequantise()


@torch.no_grad()
def quantise_weight(
    weight_NK: Tensor, hessian: Hessian, settings: GptqSettings, *, name: str = "the layer"
) -> QuantisedLayer:
    """Quantise a weight given what its inputs were; `quantize_linear` for who has a Hessian already.

    Without any token (an expert that no token was sent to) this is rounding to nearest.

    Raises:
        ConfigError: as `quantize_linear`; says `name`.
    """
    N, K = weight_NK.shape
    problem = settings.obstacle(N, K)
    if problem:
        raise ConfigError(f"{name} cannot be quantised: {problem}.", hint="Choose another group size.")
    weight = weight_NK.to(torch.float32, copy=True)
    if not bool(weight.isfinite().all()):
        raise ConfigError(f"{name} cannot be quantised: it holds numbers that are not finite.")
    matrix = hessian.matrix
    if hessian.num_tokens:
        weight[:, hessian.unused] = 0  # what is never read may as well be nothing
    if bool(hessian.unused.any()):
        matrix = matrix.clone()
        matrix.diagonal().copy_(hessian.importance())
    order = matrix.diagonal().argsort(descending=True, stable=True) if settings.act_order else None
    if order is not None:
        matrix = matrix[order][:, order]
    U, damp = inverse_factor(matrix, settings.damp)
    rounding = _Rounding(weight, U, matrix.diagonal(), order, settings)
    return QuantisedLayer(rounding.run(), rounding.loss, damp)


class _Rounding:
    """One weight on its way to codes, its inputs in the order of rounding."""

    def __init__(
        self,
        weight_NK: Tensor,
        factor_KK: Tensor,
        importance_K: Tensor,
        order_K: Tensor | None,
        settings: GptqSettings,
    ) -> None:
        self.rule = settings.rule
        N, K = weight_NK.shape
        self.group = settings.group_of(K)
        self.order = torch.arange(K) if order_K is None else order_K
        self.importance = importance_K
        self.U = factor_KK
        self.scales, self.zeros = (torch.empty(K // self.group, N) for _ in range(2))
        self.is_static = order_K is not None and settings.static_groups
        if self.is_static:
            importance = torch.empty(K).scatter_(0, self.order, importance_K)
            for number in range(K // self.group):
                columns = slice(number * self.group, (number + 1) * self.group)
                self._fix_grid(number, weight_NK[:, columns], importance[columns])
        # The group of each input in the order of rounding.
        self.groups = (self.order if self.is_static else torch.arange(K)) // self.group
        # [K, N]: one input's weights lie side by side in memory, and so do its codes.
        self.weight = (
            weight_NK.t()[self.order].contiguous() if order_K is not None else weight_NK.t().contiguous()
        )
        self.codes = torch.empty(K, N, dtype=torch.uint8)
        self.loss = 0.0

    def run(self) -> Codes:
        """Round everything; the codes in the original order of inputs."""
        K = len(self.order)
        together = self._columns_together()
        for start in range(0, K, together):
            stop = min(K, start + together)
            errors = self._round_columns(start, stop)
            self.weight[stop:].addmm_(self.U[start:stop, stop:].t(), errors, alpha=-1)
        codes, groups = torch.empty_like(self.codes), torch.empty_like(self.groups)
        codes[self.order] = self.codes
        groups[self.order] = self.groups
        zeros = self.zeros.round().to(torch.uint8)
        return Codes(codes.t().contiguous(), zeros, self.scales.half(), groups)

    def _columns_together(self) -> int:
        """A number of columns that never ends within a group whose grid is chosen on the way."""
        if self.group <= _COLUMNS_TOGETHER:
            return _COLUMNS_TOGETHER // self.group * self.group
        return _COLUMNS_TOGETHER if self.group % _COLUMNS_TOGETHER == 0 else self.group

    def _round_columns(self, start: int, stop: int) -> Tensor:
        """Errors over U's diagonal, [columns, N]; what they do to later columns is left to the caller."""
        errors = torch.empty(stop - start, self.weight.shape[1])
        for column in range(start, stop):
            number = int(self.groups[column])
            if not self.is_static and column % self.group == 0:
                columns = slice(column, column + self.group)
                self._fix_grid(number, self.weight[columns].t(), self.importance[columns])
            scale, zero = self.scales[number], self.zeros[number]
            weight = self.weight[column]
            code = self.rule.quantise(weight, scale, zero)
            self.codes[column] = code
            error = (weight - (code - zero) * scale).div_(self.U[column, column])
            errors[column - start] = error
            if column + 1 < stop:
                self.weight[column + 1 : stop].addr_(self.U[column, column + 1 : stop], error, alpha=-1)
        self.loss += float(errors.square().sum())
        return errors

    def _fix_grid(self, number: int, weight_Ng: Tensor, importance_g: Tensor) -> None:
        self.scales[number], self.zeros[number] = self.rule.choose(weight_Ng.contiguous(), importance_g)

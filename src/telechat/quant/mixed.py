"""Which layers get more bits: those named, or those that lose most, under a budget.

What a layer loses is measured on the calibration rows with rounding to nearest, which ranks layers as GPTQ
does at a fraction of the time. Knows nothing of files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor

from telechat.checkpoint.gptq import BITS
from telechat.errors import ConfigError
from telechat.quant.blocks import BlockSource, stages
from telechat.quant.calibration import Calibration
from telechat.quant.gptq import GptqSettings
from telechat.quant.hessian import Hessian

log = logging.getLogger(__name__)


def match_bits(names: Sequence[str], bits: int, patterns: Sequence[tuple[str, int]] = ()) -> dict[str, int]:
    """The bits of each weight: of the first pattern that its layer's name matches, else `bits`.

    Raises:
        ConfigError: a pattern that matches no layer.
    """
    layers = {name: name.removesuffix(".weight") for name in names}
    for pattern, _ in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in layers.values()):
            raise ConfigError(
                f"bits_for: no layer is called {pattern!r}.",
                hint=f"Layers have names such as {next(iter(layers.values()))}; * stands for any characters.",
            )
    return {
        name: next((wanted for pattern, wanted in patterns if fnmatchcase(layer, pattern)), bits)
        for name, layer in layers.items()
    }


@dataclass(frozen=True)
class Sensitivity:
    """What a layer loses at each number of bits.

    Attributes:
        size: number of weights.
        loss: bits -> square error of its outputs over their squares.
    """

    size: int
    loss: Mapping[int, float]


def spend(layers: Mapping[str, Sensitivity], average_bits: float) -> dict[str, int]:
    """Bits of each layer: the least everywhere, then more wherever a bit saves most, within the budget."""
    bits = {name: min(layer.loss) for name, layer in layers.items()}
    left = sum((average_bits - bits[name]) * layer.size for name, layer in layers.items())
    while True:
        best, best_gain = None, 0.0
        for name, layer in layers.items():
            higher = [step for step in layer.loss if step > bits[name]]
            if not higher:
                continue
            step = min(higher)
            price = (step - bits[name]) * layer.size
            gain = (layer.loss[bits[name]] - layer.loss[step]) / price
            if price <= left + 1e-9 and gain > best_gain:
                best, best_gain = name, gain
        if best is None:
            return bits
        step = min(step for step in layers[best].loss if step > bits[best])
        left -= (step - bits[best]) * layers[best].size
        bits[best] = step


def plan_bits(
    blocks: BlockSource, calibration: Calibration, settings: GptqSettings, average_bits: float
) -> dict[str, int]:
    """Measure every layer of the plain model once, and spend the budget."""
    choices = [bits for bits in BITS if bits >= settings.bits]
    found: dict[str, Sensitivity] = {}
    for _, block, rows in blocks.walk(calibration):
        groups = [group for stage in stages(blocks.config) for group in stage]
        seen = block.observe(blocks, rows, groups)
        for group in groups:
            for name in group:
                weight = block.linear(name).weight.float()
                energy = seen[group].output_energy.get(name, 0.0)
                loss = {
                    bits: nearest_loss(weight, seen[group].hessian, replace(settings, bits=bits))
                    / max(energy, 1e-30)
                    for bits in choices
                }
                found[f"{block.prefix}{name}.weight"] = Sensitivity(weight.numel(), loss)
    bits = spend(found, average_bits)
    counts = {step: sum(chosen == step for chosen in bits.values()) for step in choices}
    log.info("layers by bits: %s", ", ".join(f"{count} at {step}" for step, count in counts.items()))
    return bits


def nearest_loss(weight_NK: Tensor, hessian: Hessian, settings: GptqSettings) -> float:
    """trace(E H E^T) of rounding to nearest with the best grids."""
    K = weight_NK.shape[1]
    group, rule, importance = settings.group_of(K), settings.rule, hessian.importance()
    rounded = weight_NK.clone()
    for start in range(0, K, group):
        columns = slice(start, start + group)
        piece = weight_NK[:, columns].contiguous()
        scale, zero = rule.choose(piece, importance[columns])
        codes = rule.quantise(piece, scale[:, None], zero[:, None])
        rounded[:, columns] = (codes - zero[:, None]) * scale[:, None]
    error = rounded - weight_NK
    return max(float(((error @ hessian.matrix) * error).sum()), 0.0)

"""GPTQ of a whole model folder, one block in memory at a time.

All calibration rows are carried from block to block; within one, each layer is quantised with the inputs that
the quantised layers before it give. Finished blocks are kept (`unfinished`), so a killed run goes on where it
was. Knows how files are named only through `gptq_output`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from telechat.checkpoint.gptq import V1, Codes
from telechat.errors import ConfigError, TelechatError
from telechat.models import TeleChatConfig
from telechat.models.parameters import parameter_table
from telechat.quant.blocks import Block, BlockSource, InputGroup, Seen, layers_of, stages
from telechat.quant.calibration import Calibration
from telechat.quant.config import QuantizeConfig
from telechat.quant.gptq import GptqSettings, quantise_weight
from telechat.quant.mixed import match_bits, plan_bits
from telechat.quant.source import Source
from telechat.quant.unfinished import Unfinished

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerDone:
    """What became of one layer.

    Attributes:
        name: of its weight, by the parameter table.
        bits, group_size: of its integers.
        error: root of the square error of its outputs over their squares, on the calibration rows.
        damp: the damping that was used.
        num_tokens: tokens that reached it.
        seconds: that rounding it took.
    """

    name: str
    bits: int
    group_size: int
    error: float
    damp: float
    num_tokens: int
    seconds: float


OnLayer = Callable[[LayerDone], None]


@dataclass(frozen=True)
class LayerBits:
    """How each layer is rounded: the settings of all, and the bits of each, by the names of the weights."""

    common: GptqSettings
    bits: Mapping[str, int]

    def of(self, name: str) -> GptqSettings:
        """Settings of one layer."""
        fields = {**asdict(self.common), "bits": self.bits[name]}
        return GptqSettings(**fields)


def layer_settings(config: QuantizeConfig) -> GptqSettings:
    """What all layers have in common."""
    return GptqSettings(
        bits=config.bits,
        group_size=config.groups,
        sym=config.sym,
        act_order=config.desc_act,
        static_groups=config.static_groups,
        damp=config.damp_percent,
        least_zero=1 if config.checkpoint_format == V1 else 0,
    )


def choose_bits(source: Source, config: QuantizeConfig, calibration: Calibration) -> LayerBits:
    """The bits of every layer: all alike, by name, or by what each loses.

    Raises:
        ConfigError: a pattern that matches no layer, a layer that cannot be packed.
    """
    names = list(layers_of(source.config))
    common = layer_settings(config)
    if config.average_bits is not None:
        bits = plan_bits(source.blocks, calibration, common, config.average_bits)
    else:
        bits = match_bits(names, config.bits, config.bits_for)
    chosen = LayerBits(common, bits)
    _check_sizes(source.config, chosen)
    return chosen


def _check_sizes(config: TeleChatConfig, layers: LayerBits) -> None:
    """Before anything is computed: every layer divides into groups and words."""
    for parameter in parameter_table(config):
        if parameter.name not in layers.bits:
            continue
        rows, columns = parameter.shape
        problem = layers.of(parameter.name).obstacle(rows, columns)
        if problem:
            raise ConfigError(
                f"{parameter.name} cannot be quantised: {problem}.",
                hint="Choose a group size that divides every layer, or -1.",
            )


def quantise_blocks(
    source: Source,
    out: Path,
    config: QuantizeConfig,
    calibration: Calibration,
    on_layer: OnLayer | None = None,
) -> tuple[Unfinished, LayerBits]:
    """Quantise every block into `OUT.unfinished`; the caller makes the folder out of it.

    Raises:
        ConfigError: settings, weights or rows that cannot be; then nothing is kept.
        CheckpointError: an unfinished run of another kind is in the way.
    """
    calibration.check_fits(source.config.vocab_size)
    calibration.warn_if_few(max(parameter.shape[-1] for parameter in parameter_table(source.config)))
    _check_sizes(source.config, LayerBits(layer_settings(config), dict.fromkeys(layers_of(source.config), 8)))
    identity = {**asdict(config), "calibration": calibration.digest, **source.identity()}
    unfinished = Unfinished(out, identity)
    try:
        layers = choose_bits(source, config, calibration)
        _all_blocks(source, config, calibration, layers, unfinished, on_layer)
    except TelechatError:
        unfinished.remove()  # the same command would fail again
        raise
    return unfinished, layers


def _all_blocks(
    source: Source,
    config: QuantizeConfig,
    calibration: Calibration,
    layers: LayerBits,
    unfinished: Unfinished,
    on_layer: OnLayer | None,
) -> None:
    num_done = unfinished.num_blocks
    if num_done:
        log.info("going on after %d finished blocks", num_done)
    for index, block, rows in source.blocks.walk(calibration):
        if index < num_done:
            _restore(block, layers, config, unfinished.load(index))
            continue
        work = _BlockWork(source.blocks, block, rows, layers, config.checkpoint_format)
        work.run(stages(source.config), config.true_sequential, on_layer)
        unfinished.save(index, work.tensors, [asdict(done) for done in work.done])


def _restore(block: Block, layers: LayerBits, config: QuantizeConfig, tensors: Mapping[str, Tensor]) -> None:
    """Give a block the weights that an earlier run found."""
    for name, bits in layers.bits.items():
        if not name.startswith(block.prefix):
            continue
        base = name.removesuffix("weight")
        parts = {key.removeprefix(base): value for key, value in tensors.items() if key.startswith(base)}
        codes = Codes.unpack(parts, bits, config.checkpoint_format, name=name)
        block.replace_weight(name.removeprefix(block.prefix).removesuffix(".weight"), codes.dequantise())


class _BlockWork:
    """One block being quantised.

    Attributes:
        tensors: what goes on disk.
        done: what became of each layer.
    """

    def __init__(
        self,
        blocks: BlockSource,
        block: Block,
        rows: list[Tensor],
        layers: LayerBits,
        checkpoint_format: str,
    ) -> None:
        self.blocks, self.block, self.rows = blocks, block, rows
        self.layers, self.checkpoint_format = layers, checkpoint_format
        self.tensors: dict[str, Tensor] = {}
        self.done: list[LayerDone] = []

    def run(
        self, all_stages: list[list[InputGroup]], true_sequential: bool, on_layer: OnLayer | None
    ) -> None:
        """Quantise all layers, stage after stage, or all with the inputs of the plain block."""
        if not true_sequential:
            all_stages = [[group for stage in all_stages for group in stage]]
        for stage in all_stages:
            seen = self.block.observe(self.blocks, self.rows, stage)
            for group in stage:
                for name in group:
                    self._layer(name, seen[group])
                    if on_layer is not None:
                        on_layer(self.done[-1])
                del seen[group]

    def _layer(self, name: str, seen: Seen) -> None:
        full_name = f"{self.block.prefix}{name}.weight"
        settings = self.layers.of(full_name)
        began = time.perf_counter()
        # As it is on disk: the block may compute in fewer bits.
        weight = self.blocks.read(full_name)
        result = quantise_weight(weight, seen.hessian, settings, name=full_name)
        base = full_name.removesuffix("weight")
        packed: dict[str, Any] = result.codes.pack(settings.bits, self.checkpoint_format)
        self.tensors.update({base + key: value for key, value in packed.items()})
        self.block.replace_weight(name, result.codes.dequantise())
        energy = seen.output_energy.get(name, 0.0)
        self.done.append(
            LayerDone(
                full_name,
                settings.bits,
                settings.group_size,
                (result.loss / energy) ** 0.5 if energy else 0.0,
                result.damp,
                seen.hessian.num_tokens,
                round(time.perf_counter() - began, 3),
            )
        )

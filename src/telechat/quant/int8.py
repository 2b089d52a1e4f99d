"""W8A8 of a whole model folder, one block in memory at a time.

Each block is run with its plain weights: once to see which inputs stand out, which are then moved into the
weights, and once for the ranges of all inputs. Finished blocks are kept (`unfinished`). Knows the layout on
disk only through `checkpoint.ascend`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telechat.checkpoint.ascend import DYNAMIC, FLOAT, SPARSE, STATIC, stored_dynamic, stored_static
from telechat.errors import ConfigError, TelechatError
from telechat.models.parameters import parameter_table
from telechat.ops.int8 import (
    ActivationRange,
    DynamicWeight,
    StaticReference,
    StaticWeight,
    dynamic_product,
    quantise_rows,
)
from telechat.quant.blocks import Block, InputGroup, Watcher, layers_of, stages
from telechat.quant.blockwise import LayerDone, OnLayer
from telechat.quant.calibration import Calibration
from telechat.quant.int8_config import Int8Config
from telechat.quant.observers import DisableLevel, Observer
from telechat.quant.smoothing import smoothing_scale
from telechat.quant.source import Source
from telechat.quant.unfinished import Unfinished

log = logging.getLogger(__name__)

# Norms whose output is read by linear layers alone.
_SMOOTHED: dict[str, InputGroup] = {
    "input_layernorm": ("self_attention.key_value", "self_attention.query"),
    "post_attention_layernorm": ("mlp.up_proj", "mlp.gate_proj"),
}
_ALWAYS_FLOAT = ".down_proj.weight"
_ROWS_FOR_SCORES = 5
_SAMPLE_TOKENS = 256


@dataclass(frozen=True)
class Int8Plan:
    """What is done to whom: `names` are the weights that become int8, by the parameter table."""

    config: Int8Config
    names: frozenset[str]

    @property
    def kind(self) -> str:
        """The type of the quantised layers in the description."""
        if self.config.is_dynamic:
            return DYNAMIC
        return STATIC if self.config.fraction is None else SPARSE


def quantise_int8(
    source: Source,
    out: Path,
    config: Int8Config,
    calibration: Calibration,
    on_layer: OnLayer | None = None,
) -> tuple[Unfinished, Int8Plan]:
    """Quantise every block into `OUT.unfinished`; the caller makes the folder out of it.

    Raises:
        ConfigError: settings, weights or rows that cannot be; then nothing is kept.
        CheckpointError: an unfinished run of another kind is in the way.
    """
    calibration.check_fits(source.config.vocab_size)
    if config.anti_method and source.config.residual_post_layernorm:
        raise ConfigError(
            "This model adds its norms' outputs to the residual, so nothing can be moved out of them.",
            hint="Leave anti_method out.",
        )
    unfinished = Unfinished(out, {**asdict(config), "calibration": calibration.digest, **source.identity()})
    try:
        plan = Int8Plan(config, frozenset(_choose_names(source, config, calibration)))
        num_done = unfinished.num_blocks
        for index, block, rows in source.blocks.walk(calibration):
            if index >= num_done:
                work = _BlockWork(source, plan, block, rows)
                work.run(on_layer)
                unfinished.save(index, work.tensors, [asdict(done) for done in work.done])
    except TelechatError:
        unfinished.remove()
        raise
    return unfinished, plan


def _choose_names(source: Source, config: Int8Config, calibration: Calibration) -> list[str]:
    """All layers but those that stay in floats.

    Raises:
        ConfigError: `disable_names` has an unknown name, or no layer is left.
    """
    names = list(layers_of(source.config))
    disabled = {name.removesuffix(".weight") + ".weight" for name in config.disable_names}
    unknown = sorted(disabled - set(names))
    if unknown:
        raise ConfigError(
            f"disable_names: there is no layer {unknown[0].removesuffix('.weight')!r}.",
            hint=f"Layers have names such as {names[0].removesuffix('.weight')}.",
        )
    left = [name for name in names if name not in disabled and not name.endswith(_ALWAYS_FLOAT)]
    level = DisableLevel.parse(config.disable_level)
    if level.count:
        scores = _scores(source, Calibration(calibration.rows[:_ROWS_FOR_SCORES]), left)
        worst = set(level.worst(scores))
        left = [name for name in left if name not in worst]
    if not left:
        raise ConfigError(
            f"disable_names ({len(disabled)}) and disable_level ({config.disable_level}) leave none of "
            f"{len(names)} layers to quantise.",
            hint="Name fewer layers, or lower the level.",
        )
    return left


def _scores(source: Source, calibration: Calibration, names: Sequence[str]) -> dict[str, float]:
    """How far the inputs of each layer stand out."""
    found: dict[str, float] = {}
    for _, block, rows in source.blocks.walk(calibration):
        observers = _observe(source, block, rows, [name for name in names if name.startswith(block.prefix)])
        found.update({name: observer.score for name, observer in observers.items()})
    return found


def _observe(
    source: Source, block: Block, rows: Sequence[Tensor], names: Sequence[str]
) -> dict[str, Observer]:
    """What each layer of a block reads."""
    local = {name: name.removeprefix(block.prefix).removesuffix(".weight") for name in names}
    observers = {name: Observer(block.linear(short).in_features) for name, short in local.items()}
    if local:
        block.watch(
            source.blocks, rows, {short: _adding_to(observers[name]) for name, short in local.items()}
        )
    return observers


def _adding_to(observer: Observer) -> Watcher:
    return lambda inputs, _: observer.add(inputs)


class _BlockWork:
    """One block becoming int8.

    Attributes:
        tensors: what goes on disk for this block, floats included.
        done: what became of each layer.
    """

    def __init__(self, source: Source, plan: Int8Plan, block: Block, rows: list[Tensor]) -> None:
        self.source, self.plan, self.block, self.rows = source, plan, block, rows
        self.tensors: dict[str, Tensor] = {}
        self.done: list[LayerDone] = []
        # fp32 weights that the move of outliers has changed, by their names within the block.
        self.weights: dict[str, Tensor] = {}
        self.scales: dict[str, Tensor] = {}
        # Layers that no token reached.
        self.unseen: set[str] = set()

    def run(self, on_layer: OnLayer | None) -> None:
        """Move outliers, find ranges, quantise, and keep the rest as it is."""
        if self.plan.config.anti_method:
            for norm, readers in _SMOOTHED.items():
                if self._is_quantised(readers):
                    self._smooth(norm, readers)
        groups = [group for stage in stages(self.source.config) for group in stage]
        for group in groups:
            readers = tuple(name for name in group if self._full(name) in self.plan.names)
            if readers:
                self._quantise_group(readers, on_layer)
        for name, parameter in self.block.module.named_parameters():
            self._keep(name, parameter)

    def _is_quantised(self, readers: InputGroup) -> bool:
        has = [name for name, _ in self.block.module.named_modules() if name in readers]
        return bool(has) and any(self._full(name) in self.plan.names for name in readers)

    def _full(self, name: str) -> str:
        return f"{self.block.prefix}{name}.weight"

    def _watched(self, name: str) -> tuple[Observer, Tensor]:
        """What a layer reads, and some of it, [T, K]."""
        observer = Observer(self.block.linear(name).in_features)
        sample: list[Tensor] = []

        def watch(inputs: Tensor, _: Tensor) -> None:
            observer.add(inputs)
            if sum(len(piece) for piece in sample) < _SAMPLE_TOKENS:
                sample.append(inputs.reshape(-1, inputs.shape[-1])[:_SAMPLE_TOKENS].float())

        self.block.watch(self.source.blocks, self.rows, {name: watch})
        if not sample:  # an expert that no token was sent to
            return observer, torch.zeros(1, len(observer.largest_K))
        return observer, torch.cat(sample)[:_SAMPLE_TOKENS]

    def _smooth(self, norm: str, readers: InputGroup) -> None:
        observer, sample = self._watched(readers[0])
        weights = [self.source.blocks.read(self._full(name)).float() for name in readers]
        scale = smoothing_scale(self.plan.config.anti_method, observer.largest_K, weights, sample)
        layer_norm: Any = self.block.module.get_submodule(norm)
        gamma = self.source.blocks.read(f"{self.block.prefix}{norm}.weight").float()
        # The norm is stored in few bits: what is moved is what really left it.
        divided = (gamma / scale).to(self.source.dtype)
        scale = torch.where(divided == 0, 1.0, gamma / divided.float())
        divided = torch.where(divided == 0, gamma, divided.float())
        for name, weight in zip(readers, weights, strict=True):
            self.weights[name] = weight * scale
            self.block.replace_weight(name, self.weights[name])
        layer_norm.weight = nn.Parameter(divided.to(layer_norm.weight.dtype), requires_grad=False)
        self.scales[norm] = divided

    def _quantise_group(self, readers: InputGroup, on_layer: OnLayer | None) -> None:
        """Layers with a common input get a common range."""
        began = time.perf_counter()
        observer, sample = self._watched(readers[0])
        if not observer.num_values:
            log.warning(
                "no calibration token reached %s%s: it stays in floats", self.block.prefix, readers[0]
            )
            self.unseen.update(readers)
            return
        low, high = observer.range(self.plan.config.ranges)
        inputs = ActivationRange.spanning(low, high, self.source.dtype)
        for name in readers:
            full_name = self._full(name)
            weight = self.weights.get(name)
            if weight is None:
                weight = self.source.blocks.read(full_name).float()
            if not bool(weight.isfinite().all()):
                raise ConfigError(f"{full_name} cannot be quantised: it holds numbers that are not finite.")
            bias_name = full_name.removesuffix("weight") + "bias"
            has_bias = self.block.linear(name).bias is not None
            bias = self.source.blocks.read(bias_name).float() if has_bias else None
            exact = nn.functional.linear(sample, weight, bias)
            if self.plan.config.is_dynamic:
                dynamic = DynamicWeight(*quantise_rows(weight))
                self.tensors.update(stored_dynamic(full_name, dynamic))
                given = dynamic_product(sample, dynamic) + (0 if bias is None else bias)
            else:
                static = StaticWeight.from_float(weight, bias, inputs, fraction=self.plan.config.fraction)
                self.tensors.update(stored_static(full_name, static, self.source.dtype))
                given = StaticReference(static)(sample)
            norm = float(exact.square().sum())
            error = (float((given - exact).square().sum()) / norm) ** 0.5 if norm else 0.0
            seconds = round(time.perf_counter() - began, 3)
            self.done.append(LayerDone(full_name, 8, -1, error, 0.0, len(sample), seconds))
            if on_layer is not None:
                on_layer(self.done[-1])

    def _keep(self, name: str, parameter: Tensor) -> None:
        """What stays in floats: as it is on disk, or as the move of outliers left it."""
        full_name = self.block.prefix + name
        layer, _, leaf = name.rpartition(".")
        is_int8 = self._full(layer) in self.plan.names and layer not in self.unseen
        if is_int8 and (leaf == "weight" or not self.plan.config.is_dynamic):
            return
        changed = self.scales.get(layer) if leaf == "weight" else None
        if changed is None and leaf == "weight":
            changed = self.weights.get(layer)
        tensor = self.source.blocks.read(full_name) if changed is None else changed
        self.tensors[full_name] = tensor.to(self.source.dtype).contiguous()


def block_names(source: Source) -> list[str]:
    """Names by the parameter table of what is outside the blocks."""
    return [p.name for p in parameter_table(source.config) if not p.name.startswith("transformer.h.")]


def tensor_types(plan: Int8Plan, names: Collection[str]) -> dict[str, str]:
    """The type of every tensor, for the description."""
    marks = (".deq_scale", ".weight_scale")
    layers = {name.removesuffix(mark) for name in names for mark in marks if name.endswith(mark)}

    def kind(name: str) -> str:
        layer, _, leaf = name.rpartition(".")
        return plan.kind if layer in layers and leaf != "bias" else FLOAT

    return {name: kind(name) for name in names}

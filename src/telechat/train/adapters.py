"""Adapters in training: a model whose linear layers are frozen and changed by low-rank updates.

QLoRA is the same over weights stored in 8 or 4 bits. Knows which layers get an update and how it is read out;
files are `telechat.checkpoint`'s, the mathematics `telechat.layers.lora`'s.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from telechat.checkpoint import Adapter, AdapterConfig, LowRank
from telechat.checkpoint.adapter import adaptable_layers
from telechat.errors import ConfigError
from telechat.layers.lora import UPDATE, LowRankUpdate, attach
from telechat.layers.quantized import QuantizedLinear, set_module
from telechat.models import TeleChatModel, parameter_table
from telechat.models.quantized import HEAD_MODULE, put_weight, round_parameter
from telechat.ops.quantized import WeightScheme
from telechat.train.config import LoraSection
from telechat.train.precision import Precision

log = logging.getLogger(__name__)


def adapter_config(section: LoraSection, base_model: str) -> AdapterConfig:
    """The settings under PEFT's names.

    In `official` mode rank and scaling change places, as in the original TeleChat-1 program, where
    `--lora_dim 8` with scaling 1 trains rank 1 with factor 8.

    Raises:
        ConfigError: a rank that is not positive, or a pattern that is no regular expression.
    """
    rank, alpha = section.rank, section.alpha
    if section.mode == "official":
        if alpha != math.floor(alpha):
            raise ConfigError(
                f"lora.alpha is {alpha}; in official mode it takes the place of the rank, a whole number."
            )
        rank, alpha = int(alpha), float(rank)
    return AdapterConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=section.target_regex or section.targets,
        use_rslora=section.rslora,
        use_dora=section.dora,
        rank_pattern=section.rank_pattern,
        alpha_pattern=section.alpha_pattern,
        lora_dropout=section.dropout,
        base_model_name_or_path=base_model,
    )


def add_adapters(
    model: TeleChatModel, section: LoraSection, config: AdapterConfig, precision: Precision, *, seed: int
) -> None:
    """Freeze a model and give the targeted layers a low-rank update, the only weights that train.

    Frozen matrices are kept in the format that their products are computed in, which changes no result and
    halves their memory; with `section.quantize` they are rounded to 8 or 4 bits. The head stays in floats.

    Raises:
        ConfigError: a target or pattern that no layer has, or a weight that does not divide into groups.
    """
    targets = _targeted_layers(model, config)
    model.requires_grad_(False)
    if section.quantize:
        _quantise(model, WeightScheme.named(section.quantize, section.group_size))
    if section.merge and any(isinstance(model.get_submodule(name), QuantizedLinear) for name in targets):
        raise ConfigError(
            "lora.merge cannot write weights that are quantised.",
            hint="Train, then merge the adapter into the model in floats.",
        )
    _use_formats(model, precision)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    for name in targets:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | QuantizedLinear), f"{name} is a {type(layer).__name__}"
        update = LowRankUpdate(
            layer,
            rank=config.rank(name),
            scale=config.scale(name),
            dropout=config.lora_dropout,
            uses_dora=config.use_dora,
            dtype=precision.weights,
            generator=generator,
        )
        attach(layer, update)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info("adapters on %d layers: %d weights are trained", len(targets), num_trained)


def updates(model: nn.Module) -> Iterator[LowRankUpdate]:
    """All low-rank updates of a model."""
    return (module for module in model.modules() if isinstance(module, LowRankUpdate))


def read_out(weights: Iterable[tuple[str, Tensor]], config: AdapterConfig) -> Adapter:
    """The adapter among a model's weights (`TrainEngine.weights`, `named_parameters`), as fp32."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights:
        layer, _, role = name.rpartition(f".{UPDATE}.")
        if layer:
            parts.setdefault(layer, {})[role] = tensor.detach().float().cpu().contiguous()
    return Adapter(config, {layer: LowRank(**tensors) for layer, tensors in parts.items()})


def merged_weights(weights: Iterable[tuple[str, Tensor]], adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    """An engine's weights with the adapter in them and without its matrices."""
    for name, tensor in weights:
        layer = name.removesuffix(".weight")
        if f".{UPDATE}." not in name:
            yield name, adapter.merged(layer, tensor) if layer in adapter.modules else tensor


def _targeted_layers(model: TeleChatModel, config: AdapterConfig) -> list[str]:
    """Names of the layers that get an update, in the order of the parameter table."""
    layers = [name for name in adaptable_layers(model.config) if name != HEAD_MODULE]
    chosen = [name for name in layers if config.targets(name)]
    wanted = config.target_modules if isinstance(config.target_modules, tuple) else ()
    idle = [end for end in wanted if not any(name == end or name.endswith(f".{end}") for name in layers)]
    if idle or not chosen:
        ends = sorted({name.rpartition(".")[2] for name in layers})
        raise ConfigError(
            f"lora.targets {idle[0] if idle else config.target_modules!r} names no linear layer that can be "
            "adapted.",
            hint=f"Layers end in {', '.join(ends)}; target_regex matches whole names such as {layers[0]}.",
        )
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field):
            alone = dataclasses.replace(config, r=1, rank_pattern={pattern: 2})
            if all(alone.rank(name) == 1 for name in chosen):
                raise ConfigError(
                    f"lora.{field} has {pattern!r}, which matches no layer that gets an adapter.",
                    hint=f"A pattern matches the end of a whole name such as {chosen[0]}.",
                )
    return chosen


def _quantise(model: TeleChatModel, scheme: WeightScheme) -> None:
    """Round every linear layer of the blocks that is in floats; each float weight goes at once."""
    for parameter in parameter_table(model.config):
        if parameter.kind != "linear":
            continue
        layer = model.get_submodule(parameter.name.removesuffix(".weight"))
        if isinstance(layer, nn.Linear):
            rounded = round_parameter(parameter.name, layer.weight.detach(), scheme)
            put_weight(model, parameter.name, rounded)


def _use_formats(model: TeleChatModel, precision: Precision) -> None:
    """Matrices in the products' format, all else in the weights'. A quantised head becomes a plain one, since
    losses read its weight."""
    head = model.lm_head if model.has_own_head else None
    if isinstance(head, QuantizedLinear):
        plain = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(head.dequantise(precision.compute), requires_grad=False)
        set_module(model, HEAD_MODULE, plain)
    for module in model.modules():
        dtype = precision.compute if isinstance(module, nn.Linear) else precision.weights
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)

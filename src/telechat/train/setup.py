"""The model of a run: fresh or loaded weights in the run's format, with the settings that a run may change.

Everything is applied to the plain model from outside. Knows nothing of data, optimisers or ranks.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from telechat.checkpoint import load_model, read_config, resolve_model
from telechat.checkpoint.hub import DEMO
from telechat.errors import ConfigError
from telechat.layers.moe import Router
from telechat.layers.quantized import QuantizedLinear
from telechat.layers.rotary import RotaryTables
from telechat.models import TeleChatConfig, TeleChatModel, build_model, initialise, published_size
from telechat.ops.attention import choose_attention
from telechat.train.adapters import adapter_config, add_adapters
from telechat.train.config import ModelSection, RopeSection, TrainConfig
from telechat.train.noise import add_noise
from telechat.train.precision import PRECISIONS
from telechat.train.recompute import apply_recompute

log = logging.getLogger(__name__)


def prepare_model(config: TrainConfig, device: torch.device) -> TeleChatModel:
    """The model to train, whole, on a device: weights, rotary settings and attention form.

    Raises:
        ConfigError: all weights are to be trained, and those of the folder are quantised.
    """
    precision = PRECISIONS[config.precision]
    if config.model.start_from:
        # Under an adapter, weights of the file's format find theirs later: two bytes each instead of four.
        dtype = "auto" if config.lora else precision.weights
        model = load_model(config.model.start_from, device=device, dtype=dtype)
        if not config.lora and any(isinstance(module, QuantizedLinear) for module in model.modules()):
            raise ConfigError(
                f"{config.model.start_from} holds quantised weights, which cannot be trained.",
                hint="Start from the weights in floats, or train an adapter: section lora.",
            )
        use_config(model, model_config(config.model))
    else:
        model = build_model(model_config(config.model), device=device)
        initialise(model, seed=config.seed)
        model.to(precision.weights)
    choose_training_attention(model, config.attention, precision.compute, device.type)
    if config.lora:
        settings = adapter_config(config.lora, config.model.start_from)
        add_adapters(model, config.lora, settings, precision, seed=config.seed)
    add_noise(model, config.neftune_alpha)
    return model.train()


def model_config(section: ModelSection) -> TeleChatConfig:
    """The configuration that is trained and saved: the model's own with the recipe's changes.

    Raises:
        ConfigError: the file cannot be read or is malformed.
    """
    if section.start_from:
        return with_changes(read_config(resolve_model(section.start_from)), section)
    path = Path(section.config)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"Cannot read the model configuration {path}: {error}.") from error
    return with_changes(TeleChatConfig.from_hf(raw), section)


def known_config(section: ModelSection) -> TeleChatConfig | None:
    """As `model_config`, without a download: a hub id of a published size stands for that size.

    Returns:
        None where only a hub knows the model.
    """
    path = Path(section.start_from).expanduser()
    if not section.start_from or section.start_from == DEMO or path.exists():
        return model_config(section)
    size = published_size(section.start_from)
    return None if size is None else with_changes(size, section)


def with_changes(config: TeleChatConfig, section: ModelSection) -> TeleChatConfig:
    """A configuration with the recipe's changes.

    Raises:
        ConfigError: settings of a mixture for a dense model.
    """
    given = {name: value for name, value in vars(section.moe).items() if value is not None}
    if given and config.moe is None:
        raise ConfigError(f"model.moe.{next(iter(given))} is set; this model is no mixture of experts.")
    if config.moe is not None:
        config = config.replace(moe=dataclasses.replace(config.moe, **given))
    return with_rope(config, section.rope)


def with_rope(config: TeleChatConfig, rope: RopeSection) -> TeleChatConfig:
    """A configuration with some rotary settings replaced; the context grows with the training length."""
    names = {"theta": "base"}
    given = {
        names.get(field.name, field.name): value
        for field in dataclasses.fields(rope)
        if (value := getattr(rope, field.name)) is not None
    }
    if not given:
        return config
    settings = dataclasses.replace(config.rope, **given)
    return config.replace(rope=settings, seq_length=max(config.seq_length, settings.training_length))


def use_config(model: TeleChatModel, config: TeleChatConfig) -> None:
    """Give a loaded model a configuration with other settings of rotary tables and mixtures."""
    model.config = config
    for module in model.modules():
        if isinstance(module, Router) and config.moe is not None:
            module.config = config.moe
    model.rotary = RotaryTables(config.rope, config.head_dim)
    model.static_length = config.training_seqlen


def choose_training_attention(model: TeleChatModel, name: str, dtype: torch.dtype, device_type: str) -> None:
    """Bind an attention form to every layer, chosen for the format that queries are computed in.

    Args:
        device_type: where the model will run.

    Raises:
        DeviceError: a form asked for by name cannot run.
    """
    choice = choose_attention(name, device_type=device_type, dtype=dtype, head_dim=model.config.head_dim)
    for block in model.transformer.blocks:
        block.self_attention.attention = choice.function
    model.attention_choice = choice
    log.info("attention: %s (%s)", choice.name, choice.reason)


def prepare_blocks(blocks: Sequence[nn.Module], config: TrainConfig) -> None:
    """Recomputation and compilation of decoder blocks; last, when nothing else changes them any more."""
    compiled = config.compile and has_compiler()
    apply_recompute(blocks, config.recompute, compiled=compiled)
    if compiled:
        # Block by block: one compilation serves all layers, and the mask logic outside stays in Python.
        for block in blocks:
            block.compile(dynamic=True)


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler; without one a run is slower, not impossible."""
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if any(shutil.which(name) for name in names if name):
        return True
    log.warning("compile: no C++ compiler found (%s); training without torch.compile", ", ".join(names[1:]))
    return False

"""Adapter folders in PEFT's format, read and written in two spellings of names.

A folder holds `adapter_config.json` and `adapter_model.safetensors` (or `.bin`, read without running code).
Everything is checked against the model that the adapter is for.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from telechat.checkpoint.adapter import (
    Adapter,
    LowRank,
    adaptable_layers,
    check_fits_model,
    misshapen,
    unknown_layer,
)
from telechat.checkpoint.adapter_config import AdapterConfig
from telechat.checkpoint.adapter_llama import join_halves, llama_form
from telechat.checkpoint.adapter_names import Part, Role, Spelling, TensorName, parse_tensor_name, tensor_name
from telechat.checkpoint.folder import WeightFiles, read_json
from telechat.checkpoint.weights import FLOATS, StoredTensor, StoredWeights
from telechat.errors import CheckpointError, ConfigError
from telechat.models import TeleChatConfig

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def read_adapter(folder: str | Path, config: TeleChatConfig, *, max_rank: int | None = None) -> Adapter:
    """Read an adapter folder, in either spelling.

    Args:
        config: of the model that the adapter is for.
        max_rank: highest rank allowed; judged before any tensor is read.

    Returns:
        The adapter with tensors on the CPU in the dtypes of the file, all finite.

    Raises:
        ConfigError: adapter_config.json is missing, malformed, or asks for what we do not compute.
        CheckpointError: tensors missing, extra, misshapen, not finite, damaged, or of layers that the model
            does not have.
    """
    folder = Path(folder)
    try:
        settings = AdapterConfig.from_peft(read_json(folder / ADAPTER_CONFIG))
    except ConfigError as error:
        if not (folder / ADAPTER_CONFIG).exists():
            raise ConfigError(
                f"{folder} has no {ADAPTER_CONFIG}.", hint="Point at a folder that holds a PEFT adapter."
            ) from error
        raise
    stored = _open(folder)
    places = {name: parse_tensor_name(name) for name in stored.tensors}
    _check_shapes(stored.tensors, places, settings, config, max_rank)
    by_layer: dict[str, dict[tuple[Part, Role], Tensor]] = {}
    spelled: dict[tuple[str, Part], str] = {}
    for name, tensor in stored.stream(stored.tensors):
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{name} holds numbers that are not finite.", hint="Train the adapter again."
            )
        place = places[name]
        if spelled.setdefault((place.module, place.part), place.stored_module) != place.stored_module:
            raise CheckpointError(f"The adapter changes {place.module} twice, under two names.")
        kept = tensor if stored.owns_memory else tensor.clone()
        by_layer.setdefault(place.module, {})[place.part, place.role] = kept
    return _assemble(by_layer, spelled, settings, config)


def write_adapter(
    adapter: Adapter, folder: str | Path, config: TeleChatConfig, *, spelling: Spelling = "official"
) -> None:
    """Write an adapter folder, over one that is there.

    With Llama names, one rank and one scale hold for all layers, because vLLM knows no patterns: smaller
    ranks are filled up with zeros, and other scales go into B. Merging gives the same weights in both
    spellings.

    Args:
        config: of the model that the adapter is for.
        spelling: `official` for peft on `telechat.hf`; `llama` for whatever reads the Llama export.

    Raises:
        CheckpointError: the adapter does not fit the model, has layers without a Llama name, or the folder
            cannot be written.
    """
    check_fits_model(adapter, config)
    if spelling == "llama":
        settings, named = llama_form(adapter, config)
    else:
        settings, named = adapter.config, dict(adapter.modules)
    tensors: dict[str, Tensor] = {}
    for name, low_rank in named.items():
        tensors[tensor_name(name, "lora_A")] = low_rank.a
        tensors[tensor_name(name, "lora_B")] = low_rank.b
        if low_rank.magnitude is not None:
            tensors[tensor_name(name, "lora_magnitude_vector")] = low_rank.magnitude
    # Tensors that share memory, as halves of one B do, cannot be saved side by side.
    content = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    folder = Path(folder)
    text = json.dumps(settings.to_peft(), indent=2, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writing = folder / f"{ADAPTER_WEIGHTS[0]}.writing"
        save_file(content, writing, metadata={"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
        writing.replace(folder / ADAPTER_WEIGHTS[0])
    except OSError as error:
        raise CheckpointError(f"Cannot write the adapter to {folder}: {error.strerror or error}.") from error


def _open(folder: Path) -> StoredWeights:
    for name in ADAPTER_WEIGHTS:
        if (folder / name).is_file():
            stored = StoredWeights(WeightFiles((folder / name,), {}))
            break
    else:
        raise CheckpointError(f"{folder} holds no adapter.", hint=f"Expected {' or '.join(ADAPTER_WEIGHTS)}.")
    if not stored.tensors:
        raise CheckpointError(f"{folder / name} holds no tensors.")
    return stored


def _check_shapes(
    tensors: Mapping[str, StoredTensor],
    places: Mapping[str, TensorName],
    settings: AdapterConfig,
    config: TeleChatConfig,
    max_rank: int | None,
) -> None:
    """Compare what the file promises with the model, and make sure that no layer lacks a tensor."""
    layers = adaptable_layers(config)
    found: dict[str, set[Role]] = {}
    for name, place in places.items():
        if place.module not in layers:
            raise unknown_layer(place.stored_module, config)
        rank = settings.rank(place.stored_module)
        if max_rank is not None and rank > max_rank:
            raise CheckpointError(
                f"The adapter has rank {rank}; at most {max_rank} is allowed here.",
                hint="Allow it with max_lora_rank.",
            )
        width_out, width_in = layers[place.module]
        if place.part != "all":
            width_out //= 2
        shapes = {
            "lora_A": (rank, width_in),
            "lora_B": (width_out, rank),
            "lora_magnitude_vector": (width_out,),
        }
        stored = tensors[name]
        if stored.shape != shapes[place.role]:
            raise misshapen(name, stored.shape, shapes[place.role])
        if stored.dtype not in FLOATS:
            raise CheckpointError(f"{name} has dtype {stored.dtype}; expected floating point.")
        found.setdefault(place.stored_module, set()).add(place.role)
    wanted: set[Role] = {"lora_A", "lora_B"}
    if settings.use_dora:
        wanted.add("lora_magnitude_vector")
    for module, roles in found.items():
        if roles != wanted:
            odd = sorted(roles ^ wanted)[0]
            state = "lacks" if odd in wanted else "holds, without use_dora,"
            raise CheckpointError(f"The adapter {state} {tensor_name(module, odd)}.")


def _assemble(
    by_layer: Mapping[str, Mapping[tuple[Part, Role], Tensor]],
    spelled: Mapping[tuple[str, Part], str],
    settings: AdapterConfig,
    config: TeleChatConfig,
) -> Adapter:
    """The adapter with the names of the table, its patterns and targets included."""
    modules: dict[str, LowRank] = {}
    scales: dict[str, float] = {}
    for name in (layer for layer in adaptable_layers(config) if layer in by_layer):
        parts: dict[Part, LowRank] = {}
        part_scales: dict[Part, float] = {}
        for part in (part for layer, part in spelled if layer == name):
            tensors = by_layer[name]
            magnitude = tensors.get((part, "lora_magnitude_vector"))
            parts[part] = LowRank(tensors[part, "lora_A"], tensors[part, "lora_B"], magnitude)
            part_scales[part] = settings.scale(spelled[name, part])
        if "all" in parts:
            if len(parts) > 1:
                raise CheckpointError(f"The adapter changes {name} twice, under two names.")
            modules[name], scales[name] = parts["all"], part_scales["all"]
        else:
            scales[name] = next(iter(part_scales.values()))
            modules[name] = join_halves(name, parts, part_scales, config)
    is_official = all(stored == name and part == "all" for (name, part), stored in spelled.items())
    if not is_official:
        settings = _official_config(settings, modules, scales)
    return Adapter(settings, modules)


def _official_config(
    settings: AdapterConfig, modules: Mapping[str, LowRank], scales: Mapping[str, float]
) -> AdapterConfig:
    """The configuration with official names; layers that differ from r and lora_alpha are listed."""
    ranks = {name: len(low_rank.a) for name, low_rank in modules.items()}
    alphas = {
        name: scales[name] * (math.sqrt(rank) if settings.use_rslora else rank)
        for name, rank in ranks.items()
    }
    return dataclasses.replace(
        settings,
        target_modules=tuple(modules),
        rank_pattern={name: rank for name, rank in ranks.items() if rank != settings.r},
        alpha_pattern={name: alpha for name, alpha in alphas.items() if alpha != settings.lora_alpha},
    )

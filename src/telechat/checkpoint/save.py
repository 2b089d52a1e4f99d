"""Models into folders: official names and layout, safetensors, complete or not at all.

Every file is written under a temporary name and renamed when all are there, so an interrupted save leaves the
old model in place and never half a new one. Quantised layers are written as they are stored (`quantized`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from telechat.checkpoint.folder import (
    CONFIG,
    LAYOUTS,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    TRAINING_STATE,
    write_json,
)
from telechat.checkpoint.packed import SECTION
from telechat.checkpoint.packing_choice import settings_file
from telechat.checkpoint.parts import part_name, split_sizes
from telechat.checkpoint.quantized import config_section, stored_bytes, stored_tensors
from telechat.device import dtype_name
from telechat.errors import CheckpointError
from telechat.layers.int8 import DynamicInt8Linear, StaticInt8Linear
from telechat.layers.quantized import QuantizedLinear
from telechat.models import TeleChatConfig, TeleChatModel, parameter_table
from telechat.models.quantized import is_quantisable, scheme_of
from telechat.ops.quantized import WeightScheme

DEFAULT_SHARD_BYTES = 5_000_000_000


def save_model(
    model: TeleChatModel,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a model as an official folder: config.json and safetensors, with an index when there are several.

    Tokenizer and generation_config.json are not the model's; copy them beside it.

    Args:
        model: weights are read from wherever they are, one shard at a time.
        folder: made when absent; weights that are in it are replaced.
        dtype: dtype on disk; the model's own when None.
        max_shard_bytes: no file's tensors exceed this, except a tensor that does so alone.

    Raises:
        CheckpointError: the folder cannot be written or holds a model in a form that would stay beside this
            one, or `max_shard_bytes` is not positive.
    """
    dtype = dtype or model.dtype
    _check_savable(model)
    scheme = scheme_of(model)
    write_folder(
        folder,
        folder_config(model.config, dtype, scheme),
        parameter_bytes(model.config, dtype, scheme),
        lambda names: _content(model, names, dtype),
        max_shard_bytes=max_shard_bytes,
    )


def _check_savable(model: TeleChatModel) -> None:
    int8 = (name for name, m in model.named_modules() if isinstance(m, StaticInt8Linear | DynamicInt8Linear))
    name = next(int8, None)
    if name is not None:
        raise CheckpointError(
            f"This quantised model cannot be saved: the activations of {name} are int8, too.",
            hint="Copy the folder it was loaded from.",
        )
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    ordered = next((name for name, layer in layers if layer.order is not None), None)
    if ordered is not None or len({layer.scheme for _, layer in layers}) > 1:
        problem = "layers differ in bits or groups"
        if ordered is not None:
            problem = f"{ordered} has its inputs in another order"
        raise CheckpointError(
            f"This quantised model cannot be saved: {problem}.", hint="Copy the folder it was loaded from."
        )
    _check_whole(model)


def _check_whole(model: TeleChatModel) -> None:
    """Refuse a model whose weights an engine has taken, and a rank's part."""
    for parameter in parameter_table(model.config):
        owner, _, leaf = parameter.name.rpartition(".")
        try:
            module = model.get_submodule(owner)
        except AttributeError:  # an expert of another rank
            module = None
        if isinstance(module, QuantizedLinear) and leaf == "weight":
            is_there = module.qweight is not None and parameter.shape == (
                module.out_features,
                module.in_features,
            )
        else:
            tensor = getattr(module, leaf, None)
            is_there = isinstance(tensor, Tensor) and tuple(tensor.shape) == parameter.shape
        if not is_there:
            raise CheckpointError(
                f"This model cannot be saved: {parameter.name} is not in it whole.",
                hint="An engine keeps weights in a form of its own; save what telechat.load_model gives.",
            )


def folder_config(config: TeleChatConfig, dtype: torch.dtype, scheme: WeightScheme | None) -> dict[str, Any]:
    """Contents of config.json."""
    fields: dict[str, Any] = {**config.to_hf(), "torch_dtype": dtype_name(dtype)}
    if scheme is not None:
        fields[SECTION] = config_section(config, scheme)
    return fields


def parameter_bytes(
    config: TeleChatConfig, dtype: torch.dtype, scheme: WeightScheme | None
) -> dict[str, int]:
    """Bytes on disk of each parameter of the table, in its order."""
    return {
        parameter.name: stored_bytes(parameter.shape, scheme)
        if scheme is not None and is_quantisable(parameter)
        else parameter.size * dtype.itemsize
        for parameter in parameter_table(config)
    }


def _content(model: TeleChatModel, names: list[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors on disk of some parameters, on the CPU."""
    content: dict[str, Tensor] = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, QuantizedLinear) and leaf == "weight":
            content.update(stored_tensors(name, module.stored))
        else:
            content[name] = getattr(module, leaf).detach().to("cpu", dtype).contiguous()
    return content


def plan_shards(sizes: Mapping[str, int], max_shard_bytes: int) -> dict[str, list[str]]:
    """File name -> names of its parameters, in order; `sizes` are their bytes."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, num_bytes in sizes.items():
        if groups[-1] and filled + num_bytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += num_bytes
    if len(groups) == 1:
        return {SAFETENSORS: groups[0]}
    return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups)}


def write_folder(
    folder: str | Path,
    config: Mapping[str, Any],
    sizes: Mapping[str, int],
    content: Callable[[list[str]], dict[str, Tensor]],
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a model folder, one file's tensors in memory at a time.

    Args:
        config: contents of config.json.
        sizes: bytes on disk of each parameter, in the order of writing.
        content: the tensors on disk that some of these parameters become; asked for once per file.

    Raises:
        CheckpointError: the folder cannot be written or holds a model in a form that would stay beside this
            one, or `max_shard_bytes` is not positive.
    """
    if max_shard_bytes < 1:
        raise CheckpointError(f"max_shard_bytes is {max_shard_bytes}; it must be positive.")
    folder = Path(folder)
    shards = plan_shards(sizes, max_shard_bytes)
    try:
        _check_nothing_stays(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, config, shards, content)
    except OSError as error:
        raise CheckpointError(f"Cannot write the model to {folder}: {error.strerror or error}.") from error


def _check_nothing_stays(folder: Path) -> None:
    """Refuse a folder whose other files would have the new weights read as something else, or not at all."""
    parts = (folder / part_name(rank, tp) for tp in sorted(split_sizes(folder)) for rank in range(tp))
    others = (settings_file(folder), *parts, folder / TRAINING_STATE)
    found = next((path for path in others if path is not None and path.exists()), None)
    if found is not None:
        raise CheckpointError(
            f"{folder} holds a model in another form, of which {found.name} would stay.",
            hint="Name another folder, or remove what is in this one.",
        )


def _write(
    folder: Path,
    config: Mapping[str, Any],
    shards: Mapping[str, list[str]],
    content: Callable[[list[str]], dict[str, Tensor]],
) -> None:
    """Write all files under temporary names, then rename them, the index and config.json last."""
    suffix = f".writing-{os.getpid()}"
    written: list[str] = []
    placed: dict[str, str] = {}
    total_bytes = 0
    try:
        for file, names in shards.items():
            written.append(file)
            tensors = content(names)
            save_file(tensors, folder / (file + suffix), metadata={"format": "pt"})
            placed.update(dict.fromkeys(tensors, file))
            total_bytes += sum(tensor.nbytes for tensor in tensors.values())
            del tensors
        if len(shards) > 1:
            written.append(SAFETENSORS_INDEX)
            index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(placed.items()))}
            write_json(folder / (SAFETENSORS_INDEX + suffix), index)
        written.append(CONFIG)
        write_json(folder / (CONFIG + suffix), config)
        stale = _other_weights(folder, set(written))
        for file in written:
            os.replace(folder / (file + suffix), folder / file)
        for path in stale:
            path.unlink(missing_ok=True)
    finally:
        for file in written:
            (folder / (file + suffix)).unlink(missing_ok=True)


def _other_weights(folder: Path, written: set[str]) -> list[Path]:
    """Weights of an earlier save that would be read instead of, or beside, the new ones."""
    shards = [*folder.glob("model-*-of-*.safetensors"), *folder.glob("pytorch_model-*-of-*.bin")]
    found = {folder / name for name in LAYOUTS if (folder / name).exists()} | set(shards)
    return sorted(path for path in found if path.name not in written)

"""Models into folders: official names and layout, safetensors, complete or not at all.

Every file is written under a temporary name and renamed when all are there, so an interrupted save leaves the
old model in place and never half a new one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from telechat.checkpoint.folder import CONFIG, LAYOUTS, SAFETENSORS, SAFETENSORS_INDEX
from telechat.device import dtype_name
from telechat.errors import CheckpointError
from telechat.models import TeleChatConfig, TeleChatModel, parameter_table

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
        CheckpointError: the folder cannot be written, or `max_shard_bytes` is not positive.
    """
    if max_shard_bytes < 1:
        raise CheckpointError(f"max_shard_bytes is {max_shard_bytes}; it must be positive.")
    folder = Path(folder)
    dtype = dtype or model.dtype
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    shards = plan_shards(model.config, dtype.itemsize, max_shard_bytes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(model.config, tensors, shards, folder, dtype)
    except OSError as error:
        raise CheckpointError(f"Cannot write the model to {folder}: {error.strerror or error}.") from error


def plan_shards(config: TeleChatConfig, itemsize: int, max_shard_bytes: int) -> dict[str, list[str]]:
    """File name -> names of its tensors, in the order of the parameter table."""
    groups: list[list[str]] = [[]]
    filled = 0
    for parameter in parameter_table(config):
        num_bytes = parameter.size * itemsize
        if groups[-1] and filled + num_bytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(parameter.name)
        filled += num_bytes
    if len(groups) == 1:
        return {SAFETENSORS: groups[0]}
    return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups)}


def _write(
    config: TeleChatConfig,
    tensors: dict[str, Tensor],
    shards: dict[str, list[str]],
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """Write all files under temporary names, then rename them, the index and config.json last."""
    suffix = f".writing-{os.getpid()}"
    written: list[str] = []
    try:
        for file, names in shards.items():
            written.append(file)
            content = {name: tensors[name].detach().to("cpu", dtype).contiguous() for name in names}
            save_file(content, folder / (file + suffix), metadata={"format": "pt"})
            del content
        if len(shards) > 1:
            written.append(SAFETENSORS_INDEX)
            _write_json(folder / (SAFETENSORS_INDEX + suffix), _index(config, shards, dtype))
        written.append(CONFIG)
        _write_json(folder / (CONFIG + suffix), {**config.to_hf(), "torch_dtype": dtype_name(dtype)})
        stale = _other_weights(folder, set(written))
        for file in written:
            os.replace(folder / (file + suffix), folder / file)
        for path in stale:
            path.unlink(missing_ok=True)
    finally:
        for file in written:
            (folder / (file + suffix)).unlink(missing_ok=True)


def _index(config: TeleChatConfig, shards: dict[str, list[str]], dtype: torch.dtype) -> dict[str, object]:
    total = sum(parameter.size for parameter in parameter_table(config)) * dtype.itemsize
    placed = {name: file for file, names in shards.items() for name in names}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}


def _other_weights(folder: Path, written: set[str]) -> list[Path]:
    """Weights of an earlier save that would be read instead of, or beside, the new ones."""
    shards = [*folder.glob("model-*-of-*.safetensors"), *folder.glob("pytorch_model-*-of-*.bin")]
    found = {folder / name for name in LAYOUTS if (folder / name).exists()} | set(shards)
    return sorted(path for path in found if path.name not in written)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

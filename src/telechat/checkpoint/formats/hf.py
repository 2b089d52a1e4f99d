"""The official layout: config.json and safetensors (or `.bin` files, which are only read) in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from telechat.checkpoint.adapter_folder import ADAPTER_CONFIG
from telechat.checkpoint.folder import CONFIG, GPTQ_SETTINGS, LAYOUTS, SAFETENSORS_INDEX, read_json
from telechat.checkpoint.formats.file_tensor import FileTensor
from telechat.checkpoint.formats.lazy import HeldTensor, LazyTensor
from telechat.checkpoint.formats.safetensors_file import plan_safetensors, read_safetensors
from telechat.checkpoint.formats.table import Checkpoint, fit_table, without_tied_head
from telechat.checkpoint.formats.writing import FilePlan, TargetPlan
from telechat.checkpoint.hub import MARKER
from telechat.checkpoint.loader import config_from
from telechat.checkpoint.mindspore import telechat1_52b
from telechat.checkpoint.mindspore.naming import from_mindspore
from telechat.checkpoint.names import PREFIX, canonical_names
from telechat.checkpoint.packed import SECTION
from telechat.checkpoint.save import DEFAULT_SHARD_BYTES, folder_config, plan_shards
from telechat.checkpoint.weights import NOTE, StoredTensor, StoredWeights, load_pickle, open_weights
from telechat.errors import CheckpointError

NAME = "hf"
# What belongs to a model besides weights and config.json.
_COPIED = ("*.json", "*.model", "*.txt", "*.jinja")
# NOTE says where a model's weights really are: a folder with a copy of it would be read as that model.
_NOT_COPIED = ("certificate.json", MARKER, NOTE, CONFIG, *LAYOUTS, ADAPTER_CONFIG)
# So does whatever says how other weights are quantised, as it may lie beside a GGUF file.
_OF_QUANTISED = (GPTQ_SETTINGS, "quant_config.json", "quant_model_")
_OF_INTEGERS = (".qweight", ".weight_packed", ".weight_scale", ".deq_scale")


def open_hf(folder: Path, raw: Mapping[str, Any] | None = None) -> Checkpoint:
    """Open an official folder.

    Args:
        raw: contents of config.json; by default the folder's own.

    Raises:
        CheckpointError, ConfigError: as loading it would.
    """
    raw = read_json(folder / CONFIG) if raw is None else raw
    stored = lazy_tensors(open_weights(folder))
    refuse_quantised(folder, raw, stored)
    return open_named(stored, raw, folder.name, folder)


def refuse_quantised(folder: Path, raw: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise CheckpointError where config.json or names of tensors say that weights are integers."""
    if raw.get(SECTION) or any(name.endswith(_OF_INTEGERS) for name in names):
        raise CheckpointError(
            f"{folder.name} is quantised.",
            hint="Convert the model it was made from; to use it as is, leave --config and --tokenizer out.",
        )


def open_named(
    stored: Mapping[str, LazyTensor], raw: Mapping[str, Any], source: str, folder: Path | None
) -> Checkpoint:
    """Open tensors that have their official names, with or without `transformer.`, or those of the 52B."""
    config = config_from(raw, {name: tensor.shape for name, tensor in stored.items()})
    if telechat1_52b.is_gpt2(stored):
        ours = telechat1_52b.completed(from_mindspore(telechat1_52b.from_gpt2(stored), config), config)
        fitted = fit_table(ours, config, source)
        return Checkpoint(
            config=config, tensors=fitted, folder=folder, format="TeleChat1-52B", is_telechat1_52b=True
        )
    tensors = {ours: stored[name] for ours, name in canonical_names(stored).items()}
    tensors = without_tied_head(tensors, config, source)
    fitted = fit_table(tensors, config, source)
    # The TeleChat1-7B, whose names have no prefix, is published pickled; safetensors made of it are sorted.
    is_telechat1_7b = not any(name.startswith(PREFIX) for name in stored)
    return Checkpoint(
        config=config,
        tensors=fitted,
        folder=folder,
        format="official layout",
        in_module_order=is_telechat1_7b or list(tensors) == list(fitted),
    )


def lazy_tensors(weights: StoredWeights) -> dict[str, LazyTensor]:
    """All tensors of a folder by their names on disk."""
    pickles: dict[Path, dict[str, torch.Tensor]] = {}
    tensors: dict[str, LazyTensor] = {}
    for name, stored in weights.tensors.items():
        if stored.offset is not None:
            tensors[name] = _in_file(stored, stored.offset)
            continue
        if stored.file not in pickles:
            pickles[stored.file] = load_pickle(stored.file)
        tensors[name] = HeldTensor(pickles[stored.file][name], stored.file)
    return tensors


def read_file(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file, pickled or safetensors, by their names on disk."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return {name: HeldTensor(tensor, path) for name, tensor in load_pickle(path).items()}


def _in_file(stored: StoredTensor, offset: int) -> FileTensor:
    num_bytes = stored.dtype.itemsize
    for extent in stored.shape:
        num_bytes *= extent
    return FileTensor(stored.file, [(offset, num_bytes)], stored.shape, stored.dtype)


def plan_hf(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> TargetPlan:
    """The plan of an official folder: config.json, safetensors, tokenizer and generation settings."""
    tensors = checkpoint.cast(dtype)
    config = folder_config(checkpoint.config, dtype or checkpoint.dtype, None)
    return TargetPlan(
        files=plan_folder(tensors, max_shard_bytes),
        small={CONFIG: json_bytes(config), **index_file(tensors, max_shard_bytes), **companions(checkpoint)},
    )


def plan_folder(tensors: Mapping[str, LazyTensor], max_shard_bytes: int) -> tuple[FilePlan, ...]:
    """The weight files of a folder."""
    shards = plan_shards({name: tensor.num_bytes for name, tensor in tensors.items()}, max_shard_bytes)
    return tuple(
        plan_safetensors(file, {name: tensors[name] for name in names}) for file, names in shards.items()
    )


def index_file(tensors: Mapping[str, LazyTensor], max_shard_bytes: int) -> dict[str, bytes]:
    """The index of a folder with several weight files; nothing for one."""
    sizes = {name: tensor.num_bytes for name, tensor in tensors.items()}
    shards = plan_shards(sizes, max_shard_bytes)
    if len(shards) == 1:
        return {}
    placed = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(placed.items()))}
    return {SAFETENSORS_INDEX: json_bytes(index)}


def companions(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Tokenizer and generation settings by file name."""
    beside = companion_files(checkpoint.folder) if checkpoint.folder is not None else {}
    return {**checkpoint.inside, **beside}


@contextmanager
def tokenizer_folder(checkpoint: Checkpoint) -> Iterator[Path | None]:
    """Where the tokenizer's files are, while the context lasts; None when there is no such place."""
    if not checkpoint.inside:
        yield checkpoint.folder
        return
    with TemporaryDirectory(prefix="telechat-") as name:
        for file, content in companions(checkpoint).items():
            (Path(name) / file).write_bytes(content)
        yield Path(name)


def companion_files(folder: Path, *, also: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Tokenizer and generation settings of a folder by file name, and the files `also` names."""
    paths = {path for pattern in _COPIED for path in folder.glob(pattern) if path.is_file()}
    return {
        path.name: path.read_bytes()
        for path in sorted(paths)
        if path.name in also or not (path.name in _NOT_COPIED or path.name.startswith(_OF_QUANTISED))
    }


def json_bytes(value: object) -> bytes:
    """A JSON file as we write it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()

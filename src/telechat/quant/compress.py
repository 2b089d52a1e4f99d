"""Sparse int8 folders (W8A8S) split by rank and compressed (W8A8SC), a folder for each rank.

Any number of processes may make parts of one folder at once, each other ones, without speaking to one
another. A part appears when it is complete, config.json when all parts are there. Knows the codec only
through `checkpoint.ascend`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from telechat.checkpoint import read_config, resolve_model
from telechat.checkpoint.ascend import (
    COMPRESSED,
    FLOAT,
    SPARSE,
    AscendFormat,
    compressed_floats,
    compressed_static,
    find_description,
    stored_static,
    weights_file,
    write_description,
)
from telechat.checkpoint.folder import CONFIG
from telechat.checkpoint.formats.hf import companion_files, json_bytes
from telechat.checkpoint.matching import match_tensors, packed_layers
from telechat.checkpoint.nibbles import CODEC, VERSION
from telechat.checkpoint.parts import is_split, part_name, split_sizes
from telechat.checkpoint.save import folder_config
from telechat.checkpoint.weights import open_weights
from telechat.errors import CheckpointError, ConfigError
from telechat.models import parameter_table
from telechat.models.quantized import is_quantisable
from telechat.ops.int8 import StaticWeight
from telechat.parallel.sharding import Layout, Shard, adds_bias, check_layout, cut_int8, is_kept, shard_table
from telechat.quant.source import folder_identity

# Weights compressed at a time, as in the original tool.
DEFAULT_WORKERS = 8
_SOURCE = "source"


@dataclass(frozen=True)
class PartDone:
    """A part that is there.

    Attributes:
        path: its folder.
        num_bytes: of its weights.
        num_split_bytes: of the same weights, split but not compressed; None where the part was there before.
    """

    path: Path
    num_bytes: int
    num_split_bytes: int | None


OnPart = Callable[[PartDone], None]


def compress(
    model: str | Path,
    out: str | Path,
    *,
    tp: int = 1,
    rank: int | None = None,
    split_out: str | Path | None = None,
    num_workers: int = DEFAULT_WORKERS,
    on_part: OnPart | None = None,
) -> bool:
    """Split a W8A8S folder for `tp` ranks and compress each part.

    A killed run is repeated by the same call: parts that are there stay.

    Args:
        model: a folder of sparse weights, read a layer at a time.
        out: made; complete parts of the same split that are there stay.
        rank: make this rank's part only; None: all of them.
        split_out: another folder, for the same parts before compression.
        num_workers: weights compressed at a time, each in memory whole.
        on_part: called after each part.

    Returns:
        Whether the folder is complete: whether all ranks' parts are there.

    Raises:
        ConfigError: no sparse weights, a model that `tp` ranks cannot share, a rank or number out of range.
        CheckpointError: a folder cannot be read or written, or `out` holds something else.
    """
    if num_workers < 1:
        raise ConfigError(f"The number of weights at a time is {num_workers}; it must be at least 1.")
    layout = Layout(tp=tp)
    if rank is not None and not 0 <= rank < tp:
        raise ConfigError(f"The rank is {rank}; of tp {tp} it must be 0 to {tp - 1}.")
    source = SparseSource(resolve_model(model))
    check_layout(source.config, layout)
    ranks = range(tp) if rank is None else (rank,)
    # The compressed folder last: once it is complete, nothing is left to do.
    targets = ([(Path(split_out), SPARSE)] if split_out is not None else []) + [(Path(out), COMPRESSED)]
    if len({target.resolve() for target, _ in targets}) < len(targets):
        raise ConfigError(f"{out} cannot hold both the compressed and the split weights.")
    if (Path(out) / CONFIG).exists():
        raise CheckpointError(f"{out} exists already.", hint="Name a folder that does not.")
    for target, _ in targets:
        _check_parts(target, layout, source.digest)
    try:
        for number in ranks:
            for target, kind in targets:
                done = _make_part(source, layout, number, target, kind, num_workers)
                if on_part is not None and kind == COMPRESSED:
                    on_part(done)
        finished = [_finish(source, layout, target, kind) for target, kind in targets]
    except OSError as error:
        raise CheckpointError(f"Cannot write {out}: {error.strerror or error}.") from error
    return all(finished)


class SparseSource:
    """A folder of sparse int8 weights that is whole.

    Attributes:
        digest: tells it from others, and from what it was before it was changed.
        dtype: of its floats.

    Raises:
        ConfigError: it has none.
        CheckpointError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if is_split(folder):
            raise ConfigError(
                f"{folder.name} is split by rank already.", hint="Name the folder it is made of."
            )
        self.config = read_config(folder)
        description = find_description(folder)
        packing = None if description is None else AscendFormat.read(description)
        if packing is None or SPARSE not in packing.types.values():
            kind = "plain weights" if packing is None else packing.summary
            raise ConfigError(
                f"{folder.name} holds no sparse weights ({SPARSE}) but {kind}.",
                hint="Make them with: telechat quantize run --w-bit 4 --a-bit 8 --co-sparse True.",
            )
        self.packing = packing
        self.weights = open_weights(folder)
        self.names = match_tensors(self.config, self.weights, packing)
        self.layers = packed_layers(parameter_table(self.config), self.names, packing)
        dtypes = [s.dtype for s in self.weights.tensors.values() if s.dtype.is_floating_point]
        self.dtype: torch.dtype = max(set(dtypes), key=dtypes.count)
        identity = {**folder_identity(folder, self.weights), "codec": [CODEC, VERSION]}
        self.digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def read(self, name: str) -> Tensor:
        """A tensor by its name in the table, as it is stored."""
        [(_, tensor)] = self.weights.stream({self.names[name]})
        return tensor

    def part(self, shard: Shard, layout: Layout, rank: int) -> dict[str, Tensor]:
        """A rank's part of a parameter as it is stored; nothing where it is held by another tensor."""
        name = shard.parameter.name
        if name not in self.layers:
            if name not in self.names:  # a bias within quant_bias
                return {}
            return {name: shard.of(self.read(name)).contiguous()}
        weight = self.packing.assemble(name, {stored: self.read(stored) for stored in self.layers[name]})
        if not isinstance(weight, StaticWeight):
            raise ConfigError(f"{name} is not of the type {SPARSE}; such a layer cannot be split.")
        part = cut_int8(weight, shard, adds_bias=adds_bias(name, layout, rank))
        assert isinstance(part, StaticWeight)
        return stored_static(name, part.copied(), self.dtype)


def _check_parts(out: Path, layout: Layout, digest: str) -> None:
    """Raise CheckpointError where a folder holds anything but parts of this very split."""
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is not a folder.", hint="Name another one.")
    others = sorted(split_sizes(out) - {layout.tp})
    if others:
        raise CheckpointError(
            f"{out} holds parts for tp {others[0]}, not {layout.tp}.", hint=f"Remove {out}, or name another."
        )
    for rank in range(layout.tp):
        part = out / part_name(rank, layout.tp)
        if part.is_dir() and _digest_of(part) != digest:
            raise CheckpointError(
                f"{part} was made of another model, or of this one before it was changed.",
                hint=f"Remove {out}, or name another folder.",
            )


def _digest_of(part: Path) -> str | None:
    """What the part says it was made of."""
    files = sorted(part.glob("*.safetensors"))
    if len(files) != 1:
        return None
    try:
        with safe_open(files[0], framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{files[0]} cannot be read: {error}.", hint=f"Remove {part}.") from error
    return metadata.get(_SOURCE)


def _make_part(
    source: SparseSource, layout: Layout, rank: int, out: Path, kind: str, num_workers: int
) -> PartDone:
    """One rank's folder, unless it is there."""
    place = out / part_name(rank, layout.tp)
    file = weights_file(kind)
    if place.is_dir():
        return PartDone(place, (place / file).stat().st_size, None)
    shards = [
        shard for shard in shard_table(source.config, layout, rank).values() if is_kept(shard, layout, rank)
    ]

    def stored(shard: Shard) -> tuple[dict[str, Tensor], dict[str, str], int]:
        """A parameter's tensors, their types, and their size before compression."""
        tensors = source.part(shard, layout, rank)
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        name, is_int8 = shard.parameter.name, shard.parameter.name in source.layers
        if kind == SPARSE or not is_quantisable(shard.parameter):
            return tensors, dict.fromkeys(tensors, SPARSE if is_int8 else FLOAT), num_bytes
        compressed = compressed_static(name, tensors) if is_int8 else compressed_floats(name, tensors[name])
        return *compressed, num_bytes

    with ThreadPoolExecutor(num_workers) as pool:
        found = list(pool.map(stored, shards))
    tensors = {name: tensor for piece, _, _ in found for name, tensor in piece.items()}
    types = {name: type_ for _, piece, _ in found for name, type_ in piece.items()}
    writing = out / f"{place.name}.writing"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    save_file(tensors, writing / file, metadata={"format": "pt", _SOURCE: source.digest})
    write_description(writing, kind, types)
    num_bytes = (writing / file).stat().st_size
    os.replace(writing, place)
    return PartDone(place, num_bytes, sum(size for _, _, size in found))


def _finish(source: SparseSource, layout: Layout, out: Path, kind: str) -> bool:
    """Add what all ranks share once all parts are there; several processes may do so at once."""
    parts: Sequence[Path] = [out / part_name(rank, layout.tp) for rank in range(layout.tp)]
    if not all(part.is_dir() for part in parts):
        return False
    fields = {**folder_config(source.config, source.dtype, None), "quantize": kind.lower()}
    for name, content in {**companion_files(source.folder), CONFIG: json_bytes(fields)}.items():
        writing = out / f"{name}.writing-{os.getpid()}"
        writing.write_bytes(content)
        os.replace(writing, out / name)
    return True

"""Slicing strategies: which part of every tensor each rank holds, as MindSpore's strategy files say it.

Integers and windows only. Reads single files, merged files of several pipeline stages, folders of files of
all ranks, and the JSON form; writes the binary form. Knows nothing of what the names mean.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from telechat.checkpoint.formats.lazy import Window
from telechat.checkpoint.mindspore.wire import WireError, bytes_field, fields, integer_field, integers
from telechat.errors import CheckpointError

FILE_NAME = "ckpt_strategy_rank_{}.ckpt"
MERGED_NAME = "merged_ckpt_strategy.ckpt"
_STAGE_NAME = re.compile(r"(\d+)-(.+)", re.DOTALL)
# MindSpore wants at least one operator in a file, and reads the number of the stage from it.
_OPERATOR = (
    "Default/network-TelechatForCausalLM/model-TelechatModel/tok_embeddings-TelechatEmbedding/Gather-op0"
)


@dataclass(frozen=True, kw_only=True)
class TensorLayout:
    """How one tensor is cut over the devices of its pipeline stage.

    Attributes:
        dev_matrix: arrangement of the stage's devices, slowest axis first.
        tensor_map: for each dimension the device axes that cut it, counted from the right; empty: whole.
        shard_step, shard_size: optimiser sharding: the first dimension of a slice is cut further, in
            `shard_size` pieces, over devices that would hold the same slice; 0: it is not; -1: over all.
    """

    dev_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    shard_step: int = 0
    shard_size: int = 0

    @property
    def num_devices(self) -> int:
        """Devices of the stage."""
        return math.prod(self.dev_matrix)

    @property
    def shards(self) -> tuple[int, ...]:
        """In how many slices each dimension is cut, optimiser sharding left out."""
        return tuple(math.prod(self._extent(axis) for axis in axes) for axes in self.tensor_map)

    @property
    def num_pieces(self) -> int:
        """In how many pieces optimiser sharding cuts a slice."""
        if self.shard_size >= 0:
            return max(1, self.shard_size)
        return self.num_devices // math.prod(self.shards)

    def without_pieces(self) -> TensorLayout:
        """The same without optimiser sharding."""
        return replace(self, shard_step=0, shard_size=0)

    def full_shape(self, local: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the whole tensor from that of a rank's part."""
        full = [extent * shards for extent, shards in zip(local, self.shards, strict=True)]
        if full:
            full[0] *= self.num_pieces
        return tuple(full)

    def window(self, local_rank: int, shape: tuple[int, ...]) -> Window:
        """The part of a tensor of `shape` that a device of the stage holds.

        Raises:
            ValueError: the tensor cannot be cut so.
        """
        if len(shape) != len(self.tensor_map):
            raise ValueError(f"it has {len(shape)} dimensions, the strategy describes {len(self.tensor_map)}")
        position = self._coordinates(local_rank)
        window = []
        for extent, axes, shards in zip(shape, self.tensor_map, self.shards, strict=True):
            index = 0
            for axis in axes:
                index = index * self._extent(axis) + position[len(position) - 1 - axis]
            window.append(_share(0, extent, index, shards))
        if self.num_pieces > 1:
            start, stop = window[0]
            window[0] = _share(start, stop, self._piece(position), self.num_pieces)
        return tuple(window)

    def _extent(self, axis: int) -> int:
        return self.dev_matrix[len(self.dev_matrix) - 1 - axis]

    def _coordinates(self, local_rank: int) -> list[int]:
        position = []
        for extent in reversed(self.dev_matrix):
            position.append(local_rank % extent)
            local_rank //= extent
        return position[::-1]

    def _piece(self, position: list[int]) -> int:
        """Index of a device's piece: replicated axes from the right until there are enough of them; of the
        last one taken, only the inner part if need be. The leftmost taken is the most significant."""
        used = {axis for axes in self.tensor_map for axis in axes}
        index, scale = 0, 1
        for axis in range(len(position)):
            extent = self._extent(axis)
            if scale == self.num_pieces:
                break
            if axis in used or extent == 1:
                continue
            taken = math.gcd(extent, self.num_pieces // scale)
            index += position[len(position) - 1 - axis] % taken * scale
            scale *= taken
        if scale != self.num_pieces:
            raise ValueError(
                f"optimiser sharding in {self.num_pieces} pieces does not fit the devices "
                f"{list(self.dev_matrix)}"
            )
        return index


def _share(start: int, stop: int, index: int, count: int) -> tuple[int, int]:
    size, rest = divmod(stop - start, count)
    if rest:
        raise ValueError(f"{stop - start} rows or columns cannot be cut in {count} equal parts")
    return start + index * size, start + (index + 1) * size


@dataclass(frozen=True)
class Strategy:
    """The layouts of all tensors, by pipeline stage.

    Attributes:
        stages: number of the stage -> tensor -> layout.
    """

    stages: Mapping[int, Mapping[str, TensorLayout]]

    @property
    def devices_per_stage(self) -> int:
        """Devices of one stage."""
        sizes = {layout.num_devices for layouts in self.stages.values() for layout in layouts.values()}
        if len(sizes) != 1:
            raise CheckpointError(f"The strategy speaks of {sorted(sizes)} devices; a stage has one number.")
        return sizes.pop()

    @property
    def num_ranks(self) -> int:
        """Ranks in all stages."""
        return len(self.stages) * self.devices_per_stage

    @property
    def names(self) -> list[str]:
        """All tensors, without repetition."""
        return list(dict.fromkeys(name for layouts in self.stages.values() for name in layouts))

    def layouts_of(self, rank: int) -> tuple[Mapping[str, TensorLayout], int]:
        """(layouts of the tensors that a rank holds, its number within the stage)."""
        stage, local = divmod(rank, self.devices_per_stage)
        return self.stages[sorted(self.stages)[stage]], local


def read_strategy(path: Path) -> Strategy:
    """The strategy in a file, or in all files of a folder.

    Raises:
        CheckpointError: none there, damaged, or files that contradict one another.
    """
    paths = [path] if path.is_file() else _strategy_files(path)
    stages: dict[int, dict[str, TensorLayout]] = {}
    for file in paths:
        stage, layouts = _read_file(file)
        for name, layout in layouts.items():
            match = _STAGE_NAME.fullmatch(name)
            own, plain = (int(match[1]), match[2]) if match else (stage, name)
            known = stages.setdefault(own, {}).setdefault(plain, layout)
            if known != layout:
                raise CheckpointError(f"{file.name} contradicts another strategy file about {plain}.")
    if not stages:
        raise CheckpointError(f"{path} describes no tensors.")
    return Strategy(dict(sorted(stages.items())))


def _strategy_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CheckpointError(f"There is no strategy {folder}.")
    merged = folder / MERGED_NAME
    if merged.is_file():
        return [merged]
    found = sorted(path for path in folder.iterdir() if path.suffix in (".ckpt", ".json") and path.is_file())
    if not found:
        raise CheckpointError(
            f"{folder} holds no strategy files.", hint=f"Expected {FILE_NAME.format('N')} or {MERGED_NAME}."
        )
    return found


def _read_file(path: Path) -> tuple[int, dict[str, TensorLayout]]:
    """(number of the stage, layouts)."""
    try:
        content = path.read_bytes()
        return _from_json(json.loads(content)) if path.suffix == ".json" else _from_wire(content)
    except (WireError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} is no strategy file, or is damaged: {error}.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error


def _from_wire(content: bytes) -> tuple[int, dict[str, TensorLayout]]:
    stage: int | None = None
    layouts: dict[str, TensorLayout] = {}
    for item in fields(content, 0, len(content)):
        if item.number == 2 and stage is None:
            for part in fields(content, item.start, item.stop):
                if part.number == 2:
                    numbers = [f.value for f in fields(content, part.start, part.stop) if f.number == 1]
                    if not numbers:
                        raise ValueError("it does not say its stage")
                    stage = numbers[0]
        elif item.number == 3:
            name = ""
            for part in fields(content, item.start, item.stop):
                if part.number == 1:
                    name = content[part.start : part.stop].decode("utf-8")
                elif part.number == 2:
                    layouts[name] = _layout_from_wire(content, part.start, part.stop)
        elif item.number not in (1, 2):
            raise ValueError(f"it has a field {item.number}")
    return stage or 0, layouts


def _layout_from_wire(content: bytes, start: int, stop: int) -> TensorLayout:
    lists: dict[int, list[list[int]]] = {1: [], 2: []}
    numbers = {5: 0, 6: 0, 7: 0}
    for part in fields(content, start, stop):
        if part.number in lists:
            values: list[int] = []
            for dim in fields(content, part.start, part.stop):
                values += integers(content, dim)
            lists[part.number].append(values)
        elif part.number in numbers:
            numbers[part.number] = integers(content, part)[0]
    return _layout(lists[1], lists[2], numbers[6], numbers[7])


def _layout(matrices: list[list[int]], maps: list[list[int]], step: int, size: int) -> TensorLayout:
    """One list in `maps` has an axis for each dimension; several lists are the axes of one dimension each."""
    if len(matrices) != 1 or not maps:
        raise ValueError("a layout has no device matrix or no tensor map")
    per_dim = [[axis] for axis in maps[0]] if len(maps) == 1 else maps
    tensor_map = tuple(tuple(axis for axis in axes if axis >= 0) for axes in per_dim)
    if any(axis >= len(matrices[0]) for axes in tensor_map for axis in axes):
        raise ValueError(f"a tensor map {maps} names an axis that {matrices[0]} does not have")
    return TensorLayout(
        dev_matrix=tuple(matrices[0]), tensor_map=tensor_map, shard_step=step, shard_size=size
    )


def _from_json(raw: Mapping[str, Any]) -> tuple[int, dict[str, TensorLayout]]:
    items = raw.get("parallel_strategy_item") or {}
    first: Mapping[str, Any] = next(iter(items.values()), {})
    layouts = {}
    for name, entry in raw["parallel_layout_item"].items():
        maps = entry["tensor_map"]
        layouts[name] = _layout(
            [list(entry["dev_matrix"])],
            maps if maps and isinstance(maps[0], list) else [list(maps)],
            int(entry.get("opt_weight_shard_step", 0)),
            int(entry.get("opt_weight_shard_size", 0)),
        )
    return int(first.get("stage", 0)), layouts


def strategy_file(stage: int, layouts: Mapping[str, TensorLayout]) -> bytes:
    """The content of the strategy file of every rank of a stage."""
    return integer_field(1, 1) + _operator(stage) + b"".join(_entry(n, v) for n, v in layouts.items())


def merged_file(strategy: Strategy) -> bytes:
    """The content of a merged strategy file."""
    stages = sorted(strategy.stages, reverse=True)
    content = integer_field(1, 1) + b"".join(_operator(stage) for stage in stages)
    for stage in stages:
        content += b"".join(
            _entry(f"{stage}-{name}", layout) for name, layout in strategy.stages[stage].items()
        )
    return content


def strategy_files(strategy: Strategy) -> dict[str, bytes]:
    """Contents by file name of the strategy files of all ranks."""
    contents = {stage: strategy_file(stage, layouts) for stage, layouts in strategy.stages.items()}
    by_rank = [stage for stage in sorted(contents) for _ in range(strategy.devices_per_stage)]
    return {FILE_NAME.format(rank): contents[stage] for rank, stage in enumerate(by_rank)}


def _operator(stage: int) -> bytes:
    ones = bytes_field(2, _dims([1, 1]))
    content = bytes_field(1, _OPERATOR.encode()) + bytes_field(2, integer_field(1, stage) + ones + ones)
    return bytes_field(2, content)


def _entry(name: str, layout: TensorLayout) -> bytes:
    flat = all(len(axes) <= 1 for axes in layout.tensor_map)
    maps = [[axes[0] if axes else -1 for axes in layout.tensor_map]]
    if not flat:
        maps = [list(axes) or [-1] for axes in layout.tensor_map]
    content = bytes_field(1, _dims(layout.dev_matrix))
    content += b"".join(bytes_field(2, _dims(axes)) for axes in maps)
    content += bytes_field(3, b"") + bytes_field(4, b"") + integer_field(5, 0)
    content += integer_field(6, layout.shard_step) + integer_field(7, layout.shard_size)
    return bytes_field(3, bytes_field(1, name.encode()) + bytes_field(2, content))


def _dims(values: Iterable[int]) -> bytes:
    return b"".join(integer_field(1, value) for value in values)

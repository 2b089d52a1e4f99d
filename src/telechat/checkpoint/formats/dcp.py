"""Checkpoints of torch.distributed.checkpoint, as our training writes them, whatever the number of ranks.

Weights are under `model.`; an optimiser's state beside them is left alone. Tensors are read and written one
at a time.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from telechat.checkpoint.formats.hf import companions, json_bytes, open_named
from telechat.checkpoint.formats.lazy import LazyTensor, Window
from telechat.checkpoint.formats.table import Checkpoint
from telechat.checkpoint.formats.writing import OnProgress
from telechat.checkpoint.save import folder_config
from telechat.errors import CheckpointError

NAME = "dcp"
METADATA = ".metadata"
_MODEL = "model."


@contextmanager
def _alone() -> Iterator[None]:
    """Torch warns of being used in one process, which is what is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


class _Folder:
    """Reads whole tensors, and keeps the last one: its windows are asked for one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._last: tuple[str, Tensor] | None = None

    def read(self, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor, not to be written to."""
        with self._lock:
            if self._last is None or self._last[0] != key:
                self._last = None
                tensor = torch.empty(shape, dtype=dtype)
                with _alone():
                    load({key: tensor}, storage_reader=FileSystemReader(self.path), no_dist=True)
                self._last = key, tensor
            return self._last[1]


class _DcpTensor(LazyTensor):
    """A tensor of a folder."""

    def __init__(self, folder: _Folder, key: str, metadata: TensorStorageMetadata) -> None:
        super().__init__(tuple(metadata.size), metadata.properties.dtype)
        self._folder, self._key = folder, key

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        return ()

    def files(self) -> set[Path]:
        return {self._folder.path / METADATA}

    def read_into(self, out: Tensor, window: Window) -> None:
        tensor = self._folder.read(self._key, self.shape, self.dtype)
        out.copy_(tensor[tuple(slice(start, stop) for start, stop in window)])


def open_dcp(folder: Path, raw: Mapping[str, Any]) -> Checkpoint:
    """Open a folder.

    Args:
        raw: contents of the model's config.json.

    Raises:
        CheckpointError: damaged, or no weights in it.
    """
    everything = stored_tensors(folder)
    prefix = _MODEL if any(key.startswith(_MODEL) for key in everything) else ""
    stored = {key.removeprefix(prefix): t for key, t in everything.items() if key.startswith(prefix)}
    if not stored:
        raise CheckpointError(f"{folder.name} holds no weights.")
    checkpoint = open_named(stored, raw, folder.name, folder)
    return Checkpoint(
        config=checkpoint.config, tensors=checkpoint.tensors, folder=folder, format="training checkpoint"
    )


def stored_tensors(folder: Path) -> dict[str, LazyTensor]:
    """All tensors of a folder, an optimiser's too, by their keys.

    Raises:
        CheckpointError: damaged.
    """
    try:
        metadata: Metadata = FileSystemReader(folder).read_metadata()
    except (OSError, CheckpointException, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{folder / METADATA} is damaged: {error}.") from error
    opened = _Folder(folder)
    return {
        key: _DcpTensor(opened, key, entry)
        for key, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


class _LazyPlanner(DefaultSavePlanner):
    """Reads every tensor when it is written; until then a tensor without memory stands for it."""

    def __init__(self, tensors: Mapping[str, LazyTensor], on_progress: OnProgress | None) -> None:
        super().__init__()
        self._tensors, self._on_progress = tensors, on_progress
        self._num_done, self._num_all = 0, sum(tensor.num_bytes for tensor in tensors.values())

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self._tensors[index.fqn].read()

    def resolve_data(self, write_item: WriteItem) -> Any:
        content = super().resolve_data(write_item)
        self._num_done += self._tensors[write_item.index.fqn].num_bytes
        if self._on_progress is not None:
            self._on_progress(self._num_done, self._num_all)
        return content


def write_dcp(
    checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None, on_progress: OnProgress | None
) -> None:
    """Write weights, config and tokenizer into a folder that is not there yet."""
    tensors = {_MODEL + name: tensor for name, tensor in checkpoint.cast(dtype).items()}
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()
    }
    planner = _LazyPlanner(tensors, on_progress)
    with _alone():
        save(state, storage_writer=FileSystemWriter(folder), planner=planner, no_dist=True)
    config = folder_config(checkpoint.config, dtype or checkpoint.dtype, None)
    for name, content in {**companions(checkpoint), "config.json": json_bytes(config)}.items():
        (folder / name).write_bytes(content)

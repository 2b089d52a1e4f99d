"""Checkpoints of torch.distributed.checkpoint, as our training writes them, whatever the number of ranks.

Weights are under `model.`; an optimiser's state beside them is left alone. Tensors are read one at a time.
torch.distributed is imported where it is needed: it takes as long as a third of torch.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from telechat.checkpoint.folder import TRAINING_STATE
from telechat.checkpoint.formats.hf import open_named
from telechat.checkpoint.formats.lazy import LazyTensor, Window
from telechat.checkpoint.formats.table import Checkpoint
from telechat.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

NAME = "dcp"
MODEL_PREFIX = "model."


@contextmanager
def alone() -> Iterator[None]:
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
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        with self._lock:
            if self._last is None or self._last[0] != key:
                self._last = None
                tensor = torch.empty(shape, dtype=dtype)
                with alone():
                    load({key: tensor}, storage_reader=FileSystemReader(self.path), no_dist=True)
                self._last = key, tensor
            return self._last[1]


class _DcpTensor(LazyTensor):
    """A tensor of a folder."""

    def __init__(self, folder: _Folder, key: str, metadata: TensorStorageMetadata) -> None:
        super().__init__(tuple(metadata.size), metadata.properties.dtype, (str(folder.path), key))
        self._folder, self._key = folder, key

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        return ()

    def files(self) -> set[Path]:
        return {self._folder.path / TRAINING_STATE}

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
    prefix = MODEL_PREFIX if any(key.startswith(MODEL_PREFIX) for key in everything) else ""
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
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        metadata = FileSystemReader(folder).read_metadata()
    except (OSError, CheckpointException, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{folder / TRAINING_STATE} is damaged: {error}.") from error
    opened = _Folder(folder)
    return {
        key: _DcpTensor(opened, key, entry)
        for key, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }

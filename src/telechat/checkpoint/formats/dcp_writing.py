"""Writes checkpoints of torch.distributed.checkpoint, a tensor at a time, by torch's own writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.state_dict_saver import save

from telechat.checkpoint.formats.dcp import MODEL_PREFIX, alone
from telechat.checkpoint.formats.hf import companions, json_bytes
from telechat.checkpoint.formats.lazy import LazyTensor
from telechat.checkpoint.formats.table import Checkpoint
from telechat.checkpoint.formats.writing import OnProgress
from telechat.checkpoint.save import folder_config


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


def _origin(error: CheckpointException) -> BaseException:
    """What happened: the system's error, or Ctrl-C; torch's zip writer fails once more while it is closed."""
    causes = [cause for cause, _ in error.failures.values()]
    for cause in causes:
        at: BaseException | None = cause
        while at is not None and not isinstance(at, OSError | KeyboardInterrupt):
            at = at.__context__
        if at is not None:
            return at
    return causes[0] if causes else error


def write_dcp(
    checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None, on_progress: OnProgress | None
) -> None:
    """Write weights, config and tokenizer into a folder that is not there yet."""
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in checkpoint.cast(dtype).items()}
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()
    }
    planner = _LazyPlanner(tensors, on_progress)
    try:
        with alone():
            save(state, storage_writer=FileSystemWriter(folder), planner=planner, no_dist=True)
    except CheckpointException as error:  # torch's wrapper around what happened in each process
        raise _origin(error) from error
    config = folder_config(checkpoint.config, dtype or checkpoint.dtype, None)
    for name, content in {**companions(checkpoint), "config.json": json_bytes(config)}.items():
        (folder / name).write_bytes(content)

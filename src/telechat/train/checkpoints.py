"""Checkpoints of a run: written beside the training, complete or not at all, and read on any layout.

Each is a folder of torch.distributed.checkpoint, written under a temporary name and renamed when it is
complete. Knows nothing of models or optimisers: a state is nested mappings of tensors.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import async_save

from telechat.errors import CheckpointError
from telechat.train.distributed.state import PieceLoadPlanner

log = logging.getLogger(__name__)

_COMPLETE = re.compile(r"step-(\d+)")
_PROGRESS = "progress.json"


class CheckpointStore:
    """The folder `checkpoints` of a run. On several processes, all call every method alike.

    Args:
        folder: the run's folder, on storage that all ranks see.
        keep_last: newest checkpoints that are kept.
    """

    def __init__(self, folder: Path, *, keep_last: int) -> None:
        self.folder = folder / "checkpoints"
        self.keep_last = keep_last
        # Said of every save of a run on one process, where one process is what is meant.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        self._is_spread = dist.is_available() and dist.is_initialized()
        self._is_first = not self._is_spread or dist.get_rank() == 0
        # Writing happens in a thread, and talks between ranks through a group of its own.
        self._group = dist.new_group(backend="gloo") if self._is_spread else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        if self._is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob("*.partial"):
                shutil.rmtree(path)
        if self._is_spread:
            dist.barrier(self._group)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        names = (_COMPLETE.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in names if match)

    def save(self, step: int, state: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Copy a state and write it while training goes on; waits for the one before.

        Args:
            state: nested mappings of tensors.
            progress: what else `load` gives back; plain JSON.

        Raises:
            CheckpointError: the one before could not be written.
        """
        self.wait()
        partial = self._path(step).with_suffix(".partial")
        upload = async_save(
            dict(state), checkpoint_id=partial, process_group=self._group, no_dist=not self._is_spread
        )
        assert isinstance(upload, Future)
        self._pending = self._thread.submit(self._finish, upload, step, json.dumps(progress))

    def check(self) -> None:
        """Raise CheckpointError if the last save has failed; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until the last save is complete.

        Raises:
            CheckpointError: it could not be written; earlier checkpoints are as they were.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the last save and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def load(self, step: int, state: Mapping[str, Any]) -> dict[str, Any]:
        """Fill the tensors of `state` in place; returns the progress saved with them.

        Raises:
            CheckpointError: the checkpoint is of another model or optimiser, or damaged.
        """
        path = self._path(step)
        try:
            progress: dict[str, Any] = json.loads((path / _PROGRESS).read_text(encoding="utf-8"))
            load_state(
                dict(state),
                checkpoint_id=path,
                planner=PieceLoadPlanner(),
                process_group=self._group,
                no_dist=not self._is_spread,
            )
        except (OSError, ValueError, CheckpointException) as error:
            raise CheckpointError(
                f"Cannot resume from {path}: {_reason(error)}.",
                hint="Use the recipe that wrote it, or another output.folder to begin anew.",
            ) from error
        return progress

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _finish(self, upload: Future[Any], step: int, progress: str) -> None:
        """Give a written checkpoint its name and remove what is no longer kept; runs in the thread."""
        path = self._path(step)
        partial = path.with_suffix(".partial")
        try:
            upload.result()
            if self._is_first:
                (partial / _PROGRESS).write_text(progress, encoding="utf-8")
                if path.exists():
                    shutil.rmtree(path)
                os.replace(partial, path)
                for old in self.steps()[: -self.keep_last]:
                    self._remove(self._path(old))
        except (OSError, CheckpointException) as error:
            shutil.rmtree(partial, ignore_errors=True)
            known = self.steps()
            last = f"the last good one is {self._path(known[-1])}" if known else "there is none before it"
            raise CheckpointError(
                f"Cannot write the checkpoint of step {step}: {_reason(error)}; {last}.",
                hint="Make room and run the same command again; it resumes.",
            ) from error
        log.info("checkpoint of step %d written", step)

    def _remove(self, path: Path) -> None:
        """Delete a checkpoint; renamed first, so that half of one never looks whole."""
        doomed = path.with_suffix(".partial")
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def _reason(error: BaseException) -> str:
    """One line about what went wrong, of the first rank that it went wrong on."""
    if isinstance(error, CheckpointException) and error.failures:
        first = next(iter(error.failures.values()))
        error = first[0] if isinstance(first, tuple) else first
    # torch reports its own broken file where the operating system said why.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            error = cause
        cause = cause.__cause__ or cause.__context__
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]

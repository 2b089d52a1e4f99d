"""Blocks that are done already, kept beside the folder to be, so that a killed run can go on.

Each block is one file that appears when it is complete. A run with other settings, other rows or another
source does not continue it. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from telechat.errors import CheckpointError

_STATE, _WRITING, _BLOCK = "state.json", "writing", "block-"


class Unfinished:
    """The folder `OUT.unfinished`.

    Args:
        out: the folder to be.
        identity: what the result depends on; JSON values.

    Raises:
        CheckpointError: there is one of another run, or a folder with files that are not a run's.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.folder = out.with_name(f"{out.name}.unfinished")
        wanted = json.loads(json.dumps(identity))
        state = self.folder / _STATE
        if not state.exists():
            self._refuse_others()
            # What an interrupted removal has left; nothing in it could be gone on with.
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            state.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        try:
            found = json.loads(state.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != wanted:
            differs = sorted(
                key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]
            )
            raise CheckpointError(
                f"{self.folder} holds an unfinished run that differs in {', '.join(differs)}.",
                hint=f"Repeat that run's command to finish it, or remove {self.folder}.",
            )

    def _refuse_others(self) -> None:
        """Make sure that nothing is removed that no run has written."""
        found = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        others = [name for name in found if not name.startswith(_BLOCK) and name != _WRITING]
        if others:
            raise CheckpointError(
                f"{self.folder} is in the way: it holds {others[0]}, which is no part of a run.",
                hint=f"Move {self.folder}, or choose another folder to write.",
            )

    @property
    def num_blocks(self) -> int:
        """How many blocks are done, from the first on."""
        count = 0
        while self._notes(count).exists():
            count += 1
        return count

    def save(self, index: int, tensors: Mapping[str, Tensor], notes: list[dict[str, Any]]) -> None:
        """Keep a block; `notes` are about its layers, JSON values."""
        temporary = self.folder / _WRITING
        save_file(dict(tensors), temporary)
        os.replace(temporary, self._tensors(index))
        temporary.write_text(json.dumps(notes), encoding="utf-8")
        os.replace(temporary, self._notes(index))

    def load(self, index: int) -> dict[str, Tensor]:
        """The tensors of a block that is done."""
        tensors: dict[str, Tensor] = load_file(self._tensors(index))
        return tensors

    def notes(self, index: int) -> list[dict[str, Any]]:
        """What was noted about a block that is done."""
        notes: list[dict[str, Any]] = json.loads(self._notes(index).read_text(encoding="utf-8"))
        return notes

    def remove(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _tensors(self, index: int) -> Path:
        return self.folder / f"{_BLOCK}{index:05d}.safetensors"

    def _notes(self, index: int) -> Path:
        return self.folder / f"{_BLOCK}{index:05d}.json"

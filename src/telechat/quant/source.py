"""The folder that is to be quantised, checked before anything is computed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telechat.checkpoint import read_config
from telechat.checkpoint.folder import CONFIG, read_json
from telechat.checkpoint.matching import match_tensors
from telechat.checkpoint.packing_choice import read_packing
from telechat.checkpoint.weights import StoredWeights, open_weights
from telechat.errors import ConfigError
from telechat.models import TeleChatConfig
from telechat.quant.blocks import BlockSource


class Source:
    """A folder of plain weights.

    Attributes:
        folder: where it is.
        config: its configuration.
        weights: its tensors.
        names: name by the parameter table -> name on disk.
        dtype: what stays as it is keeps it; where there are several, the commonest.

    Raises:
        ConfigError: it is quantised already.
        CheckpointError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stored = read_packing(folder, read_json(folder / CONFIG))
        if stored is not None:
            raise ConfigError(
                f"{folder.name} is quantised already, to {stored.summary}.",
                hint="Start from the unquantised model.",
            )
        self.weights: StoredWeights = open_weights(folder)
        self.config: TeleChatConfig = read_config(folder)
        self.names = match_tensors(self.config, self.weights)
        dtypes = [stored.dtype for stored in self.weights.tensors.values() if stored.dtype.is_floating_point]
        self.dtype: torch.dtype = max(set(dtypes), key=dtypes.count)

    def read(self, name: str) -> Tensor:
        """A tensor of the parameter table in its dtype on disk."""
        [(_, tensor)] = self.weights.stream({self.names[name]})
        return tensor

    @cached_property
    def blocks(self) -> BlockSource:
        """Its blocks, one at a time."""
        return BlockSource(self.config, self.weights, self.names)

    def identity(self) -> dict[str, Any]:
        """See `folder_identity`."""
        return folder_identity(self.folder, self.weights)


def folder_identity(folder: Path, weights: StoredWeights) -> dict[str, Any]:
    """What tells a folder from others and from what it was before it was changed."""
    files = {path.name: path.stat() for path in weights.files.files}
    return {
        "source": str(folder.resolve()),
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in sorted(files.items())},
    }

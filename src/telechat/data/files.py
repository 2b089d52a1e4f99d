"""Opens a training file of any kind as rows: JSON, arrays, MindRecord, or a folder of encoded samples."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from telechat.data.mindrecord import is_mindrecord, read_mindrecord
from telechat.data.rows import BadRow, Row, read_rows
from telechat.errors import ConfigError

_PICKLES = (".pt", ".pkl", ".bin")
_SAMPLE_ARRAYS = ("ids", "learnt", "offsets", "members")


def read_file(path: Path) -> Iterator[Row | BadRow]:
    """The rows of a file; where it has no lines, rows are numbered from 1.

    Raises:
        ConfigError: the file is missing, damaged, or of a kind that is not opened.
    """
    if path.suffix in _PICKLES:
        raise ConfigError(
            f"{path} is a pickle, which may run code when it is read; it is not opened.",
            hint="Train on the rows that it was made from: their preparation is part of training here.",
        )
    if path.is_dir():
        yield from _sample_rows(path)
    elif path.suffix == ".npz":
        yield from _array_rows(path)
    elif is_mindrecord(path):
        for number, arrays in enumerate(read_mindrecord(path), 1):
            yield Row(path, number, dict(arrays))
    else:
        yield from read_rows(path)


def _sample_rows(folder: Path) -> Iterator[Row]:
    """The conversations of a folder that `store` wrote, sample by sample, each a row of its own."""
    missing = [name for name in _SAMPLE_ARRAYS if not (folder / f"{name}.npy").is_file()]
    if missing:
        raise ConfigError(
            f"{folder} is a folder without encoded samples: {missing[0]}.npy is missing.",
            hint="Name a file of rows, or a folder inside the one named by data.cache.",
        )
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _SAMPLE_ARRAYS}
    weights = folder / "weights.npy"
    if weights.is_file():
        arrays["weights"] = np.load(weights, mmap_mode="r")
    offsets = arrays["offsets"]
    for number, member in enumerate(arrays["members"].tolist(), 1):
        span = slice(int(offsets[member]), int(offsets[member + 1]))
        value: dict[str, Any] = {"input_ids": arrays["ids"][span], "loss_mask": arrays["learnt"][span]}
        if "weights" in arrays:
            value["weights"] = arrays["weights"][span]
        yield Row(folder, number, value)


def _array_rows(path: Path) -> Iterator[Row]:
    """Rows of arrays [rows, length] under the names of the fields."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"Cannot read the training file {path}: {error}.") from error
    sizes = {name: array.shape[:1] for name, array in arrays.items()}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        raise ConfigError(f"The arrays of {path} have not the same number of rows: {sizes}.")
    for number in range(next(iter(sizes.values()))[0]):
        yield Row(path, number + 1, {name: array[number] for name, array in arrays.items()})

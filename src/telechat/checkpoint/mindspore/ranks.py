"""Folders of MindSpore files: a single file, or `rank_0`, `rank_1`, … with a file each.

Knows how the folders are laid out, and nothing of what is in the files.
"""

from __future__ import annotations

import re
from pathlib import Path

from telechat.checkpoint.formats.safetensors_file import read_safetensors
from telechat.checkpoint.mindspore.container import SUFFIX, Value, as_values, read_values
from telechat.errors import CheckpointError

RANK = re.compile(r"rank_(\d+)")
_SUFFIXES = (SUFFIX, ".safetensors")
_NUMBERS = re.compile(r"(\d+)")


def find_ranks(folder: Path) -> list[Path]:
    """The folders `rank_0`, `rank_1`, … of a folder, or of the only folder in it that has them, in order.

    Empty where there are none.

    Raises:
        CheckpointError: a number is missing.
    """
    found = _ranks_in(folder)
    if not found and folder.is_dir():
        below = [
            found for child in sorted(folder.iterdir()) if child.is_dir() and (found := _ranks_in(child))
        ]
        if len(below) == 1:
            found = below[0]
    missing = [number for number in range(len(found)) if number not in found]
    if missing:
        raise CheckpointError(
            f"{folder} lacks rank_{missing[0]}; it has rank_0 to rank_{max(found)}.",
            hint="Copy the folders of all ranks there.",
        )
    return [found[number] for number in sorted(found)]


def _ranks_in(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    matches = {path: RANK.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()}
    return {int(match[1]): path for path, match in matches.items() if match}


def file_of(folder: Path) -> Path:
    """The checkpoint of a rank's folder; of several the last, numbers in names compared as numbers.

    Raises:
        CheckpointError: none there.
    """
    files = [path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file()]
    if not files:
        raise CheckpointError(f"{folder} holds no checkpoint.", hint=f"Expected a file *{SUFFIX} in it.")
    return max(files, key=lambda path: [int(p) if p.isdigit() else p for p in _NUMBERS.split(path.name)])


def read_file(path: Path) -> dict[str, Value]:
    """The values of a `.ckpt` or `.safetensors` file."""
    return as_values(read_safetensors(path)) if path.suffix == ".safetensors" else read_values(path)


def read_ranks(path: Path) -> list[dict[str, Value]]:
    """The values of every rank; of a single file, or a folder that holds one, those of one rank."""
    if path.is_file():
        return [read_file(path)]
    ranks = find_ranks(path)
    return [read_file(file_of(folder)) for folder in ranks] if ranks else [read_file(file_of(path))]

"""Folders whose weights are split by rank: `part0-of-2`, `part1-of-2`, each with weights and a description.

The number of ranks is a matter of the folder: another one cannot load it. Knows names of folders only.
"""

from __future__ import annotations

import re
from pathlib import Path

from telechat.errors import CheckpointError

_PART = re.compile(r"part(\d+)-of-(\d+)")


def part_name(rank: int, tp: int) -> str:
    """The folder of a rank's part."""
    return f"part{rank}-of-{tp}"


def split_sizes(folder: Path) -> set[int]:
    """Of how many ranks there are parts in a folder; more than one number where it is muddled."""
    if not folder.is_dir():
        return set()
    matches = [_PART.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()]
    return {int(match[2]) for match in matches if match is not None}


def is_split(folder: Path) -> bool:
    """Whether a folder's weights are split by rank."""
    return bool(split_sizes(folder))


def weight_folders(folder: Path) -> list[Path]:
    """All folders with weights of a model: the folder itself, or its parts.

    Raises:
        CheckpointError: a part is missing.
    """
    sizes = split_sizes(folder)
    if not sizes:
        return [folder]
    size = min(sizes)
    weights_folder(folder, tp=size)  # raises where something is wrong with the parts
    return [folder / part_name(rank, size) for rank in range(size)]


def weights_folder(folder: Path, *, rank: int = 0, tp: int = 1, ep: int = 1) -> Path:
    """Where the weights of a rank are: the folder itself, or its part.

    Args:
        rank, tp, ep: of the engine that loads.

    Raises:
        CheckpointError: the folder is split for another number of ranks, or the part is missing.
    """
    sizes = split_sizes(folder)
    if not sizes:
        return folder
    if len(sizes) > 1:
        listed = " and ".join(map(str, sorted(sizes)))
        raise CheckpointError(f"{folder} holds parts for {listed} ranks.", hint="Keep those of one kind.")
    [stored] = sizes
    if (tp, ep) != (stored, 1):
        asked = f"tp {tp}" if ep == 1 else f"tp {tp} and ep {ep}"
        raise CheckpointError(
            f"{folder.name} is split and compressed for tp {stored}; it cannot be loaded with {asked}.",
            hint=f"Use --tp {stored}, or split the W8A8S folder again: "
            f"telechat quantize compress MODEL OUT --tp {tp}.",
        )
    for number in range(stored):
        if not (folder / part_name(number, stored)).is_dir():
            raise CheckpointError(
                f"{folder} lacks {part_name(number, stored)}.",
                hint="Copy the folder whole, or repeat telechat quantize compress.",
            )
    return folder / part_name(rank, tp)

"""MindSpore checkpoints cut for other ranks, under the names they have: split, merged, resharded.

Training states are taken along: whatever a strategy names is sliced, everything else is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from telechat.checkpoint.folder import CONFIG
from telechat.checkpoint.formats.hf import companion_files
from telechat.checkpoint.formats.mindspore import (
    DEFAULT_PREFIX,
    STRATEGY_FOLDER,
    check_number,
    plan_ranks,
)
from telechat.checkpoint.formats.writing import TargetPlan
from telechat.checkpoint.mindspore.container import Value
from telechat.checkpoint.mindspore.layouts import ParallelLayout, strategy_of
from telechat.checkpoint.mindspore.naming import is_mindspore
from telechat.checkpoint.mindspore.ranks import find_ranks, read_ranks
from telechat.checkpoint.mindspore.slicing import merge, split
from telechat.checkpoint.mindspore.strategy import Strategy, read_strategy, strategy_files
from telechat.errors import CheckpointError
from telechat.models import TeleChatConfig


def source_strategy(path: Path, named: Path | None) -> Strategy | None:
    """The strategy named, else that of a folder `strategy` in or beside the source, else None."""
    if named is not None:
        return read_strategy(named)
    places = [path / STRATEGY_FOLDER, path.parent / STRATEGY_FOLDER]
    found = next((place for place in places if place.is_dir()), None)
    return read_strategy(found) if found is not None else None


def target_strategy(
    named: Path | None, layout: ParallelLayout | None, config: TeleChatConfig | None
) -> Strategy:
    """The strategy to slice by: of files, or of a layout and the model's config."""
    if named is not None:
        return read_strategy(named)
    if layout is None or config is None:
        raise CheckpointError("Slicing needs the strategy files or the layout to slice for.")
    return strategy_of(config, layout)


def whole_values(path: Path, strategy: Strategy | None) -> dict[str, Value]:
    """The values of a checkpoint of one rank, or of several that a strategy describes.

    Raises:
        CheckpointError: several ranks without a strategy, or one that contradicts them.
    """
    if not path.exists():
        raise CheckpointError(f"There is no {path}.", hint="Name a MindSpore file, or a folder with some.")
    ranks = read_ranks(path)
    if not is_mindspore(ranks[0]):
        raise CheckpointError(
            f"{path} is no MindSpore checkpoint.",
            hint="Write one, sliced at once: checkpoint convert SRC DST --to mindspore --layout dp2,mp2.",
        )
    if strategy is not None and (len(ranks) > 1 or find_ranks(path)):
        check_number(path, len(ranks), strategy)
    if len(ranks) == 1:
        return ranks[0]
    if strategy is None:
        raise CheckpointError(
            f"{path} has the slices of {len(ranks)} ranks.", hint="Name their strategy files with --strategy."
        )
    return merge(ranks, strategy)


def plan_slices(
    path: Path,
    whole: dict[str, Value],
    strategy: Strategy,
    *,
    prefix: str = DEFAULT_PREFIX,
    subfolder: str | None = None,
    with_crc: bool = False,
) -> TargetPlan:
    """The plan of a folder with the slices of every rank, and the strategy they were made by.

    Args:
        subfolder: puts the `rank_N` folders into one more folder, as MindFormers' tool does.
    """
    return _plan(path, split(whole, strategy), strategy, prefix, subfolder, with_crc)


def plan_whole(path: Path, whole: dict[str, Value], *, prefix: str = DEFAULT_PREFIX) -> TargetPlan:
    """The plan of a folder with one rank, which holds everything."""
    return _plan(path, [whole], None, prefix, None, False)


def _plan(
    path: Path,
    ranks: Sequence[dict[str, Value]],
    strategy: Strategy | None,
    prefix: str,
    subfolder: str | None,
    with_crc: bool,
) -> TargetPlan:
    small = companion_files(path if path.is_dir() else path.parent, also=(CONFIG,))
    if strategy is not None:
        small |= {f"{STRATEGY_FOLDER}/{name}": text for name, text in strategy_files(strategy).items()}
    files = plan_ranks(ranks, f"{subfolder}/" if subfolder else "", prefix, with_crc)
    return TargetPlan(files=files, small=small)


def strategy_plan(strategy: Strategy) -> TargetPlan:
    """The plan of a folder with strategy files alone."""
    return TargetPlan(files=(), small=strategy_files(strategy))

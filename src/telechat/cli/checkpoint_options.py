"""What the verbs about checkpoints share: how a source is named, and progress in bytes."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from telechat.cli.parser import CommandParser
from telechat.errors import UsageError

if TYPE_CHECKING:
    from telechat.checkpoint.formats.table import Checkpoint
    from telechat.checkpoint.mindspore.strategy import Strategy

SOURCE_HELP = "a file, a folder, a folder with rank_0, rank_1, …, a hub id, or `demo`"
_SECONDS_BETWEEN_LINES = 1.0


def add_source_options(parser: CommandParser) -> None:
    """Add the options that complete a source which does not say everything itself."""
    group = parser.add_argument_group("source")
    group.add_argument(
        "--model-config",
        type=Path,
        metavar="FILE",
        help="config.json or MindFormers' predict_*.yaml, where the source has none beside it",
    )
    group.add_argument(
        "--strategy",
        type=Path,
        metavar="PATH",
        help="MindSpore strategy file, or folder of them, of a sliced source (default: a folder `strategy` "
        "in or beside it)",
    )


def source_path(name: str) -> Path:
    """The file or folder that a user means: a path, a hub id or `demo`."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    from telechat.checkpoint.hub import resolve_model

    return resolve_model(name)


def open_source(name: str, args: argparse.Namespace) -> Checkpoint:
    """Open what a user named, with the options of `add_source_options`."""
    from telechat.checkpoint.formats.opening import open_checkpoint

    return open_checkpoint(source_path(name), config=args.model_config, strategy=args.strategy)


class ByteProgress:
    """Bytes done on stderr: one line that is written over on a terminal, a line every second elsewhere."""

    def __init__(self) -> None:
        self._started = self._shown = time.monotonic()
        self._begin: int | None = None

    def __call__(self, num_done: int, num_all: int) -> None:
        """Show that `num_done` of `num_all` bytes are done."""
        now = time.monotonic()
        self._begin = num_done if self._begin is None else self._begin
        is_last = num_done == num_all
        if now - self._shown < _SECONDS_BETWEEN_LINES and not is_last:
            return
        self._shown = now
        rate = (num_done - self._begin) / max(now - self._started, 1e-9)
        line = f"{num_done / 1e6:.1f} of {num_all / 1e6:.1f} MB, {rate / 1e6:.0f} MB/s"
        if sys.stderr.isatty():
            print(f"\r{line:<48}", end="\n" if is_last else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr)


def add_slicing_options(parser: CommandParser) -> None:
    """Add the options that say how a target is sliced."""
    group = parser.add_argument_group("slicing", "by strategy files, or by a layout and the model's config")
    group.add_argument(
        "--to-strategy", type=Path, metavar="PATH", help="strategy file, or folder of them, to slice by"
    )
    group.add_argument(
        "--layout", metavar="AXES", help="ranks to slice for, such as dp2,mp4,pp2,ep2,opt, instead"
    )
    group.add_argument(
        "--model-config",
        type=Path,
        metavar="FILE",
        help="with --layout: config.json or MindFormers' predict_*.yaml (default: config.json in SRC)",
    )
    add_prefix(group)


def add_prefix(parser: argparse._ActionsContainer) -> None:
    """Add --prefix."""
    parser.add_argument(
        "--prefix",
        default="checkpoint_",
        metavar="TEXT",
        help="beginning of file names (default: checkpoint_)",
    )


def wanted_strategy(args: argparse.Namespace) -> Strategy:
    """The strategy that the options of `add_slicing_options` ask for."""
    from telechat.checkpoint.formats.opening import read_model_config
    from telechat.checkpoint.formats.transform import target_strategy
    from telechat.checkpoint.mindspore.layouts import parse_layout

    if (args.to_strategy is None) == (args.layout is None):
        raise UsageError("Say how to slice: --to-strategy PATH, or --layout dp2,mp4.")
    if args.layout is None:
        return target_strategy(args.to_strategy, None, None)
    source: Path = args.source
    beside = (source if source.is_dir() else source.parent) / "config.json"
    config = read_model_config(args.model_config or beside)
    return target_strategy(None, parse_layout(args.layout), config)


def named_target(source: Path) -> str:
    """The folder that slices are put into: the source's name up to the first dot, as MindFormers does."""
    return source.resolve().name.partition(".")[0]

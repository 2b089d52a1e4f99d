"""What the verbs about checkpoints share: how a source is named, and progress in bytes."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from telechat.cli.parser import CommandParser

if TYPE_CHECKING:
    from telechat.checkpoint.formats.table import Checkpoint

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

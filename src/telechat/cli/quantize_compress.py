"""`telechat quantize compress`: a sparse int8 folder split by rank, each part compressed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from telechat.cli.parser import CommandParser, positive_int
from telechat.cli.quantize_run import one_of
from telechat.errors import UsageError

if TYPE_CHECKING:
    from telechat.quant.compress import PartDone

EXAMPLES = (
    "telechat quantize run demo runs/demo-w8a8s --w-bit 4 --a-bit 8 --co-sparse True --fraction 0.011 "
    '--calib-texts "<_user>你是谁？<_bot>"',
    "telechat quantize compress runs/demo-w8a8s runs/demo-w8a8sc --tp 2",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat quantize compress`."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a folder of sparse weights, W8A8S")
    parser.add_argument(
        "out", nargs="?", type=Path, metavar="OUT", help="the folder to make; parts that are there stay"
    )
    parser.add_argument("--model-path", default=None, metavar="MODEL", help="the same as MODEL")
    parser.add_argument("--save-directory", type=Path, default=None, metavar="OUT", help="the same as OUT")
    parser.add_argument(
        "--tp",
        type=positive_int,
        default=None,
        metavar="N",
        help="ranks to split for; only as many can load the folder (default: 1, or the processes of "
        "torchrun, each of which makes its own part)",
    )
    parser.add_argument(
        "--multiprocess-num",
        type=positive_int,
        default=8,
        metavar="N",
        help="weights compressed at a time, each in memory whole (default: 8)",
    )
    parser.add_argument(
        "--save-split-w8a8s-dir",
        type=Path,
        default=None,
        metavar="DIR",
        help="keep the split weights without compression here, too (default: not)",
    )


def run(args: argparse.Namespace) -> int:
    """Compress, with progress on stderr; the folder's name goes to stdout once it is complete."""
    model = one_of("MODEL", args.model, args.model_path, verb="compress")
    out = one_of("OUT", args.out, args.save_directory, verb="compress")
    tp, rank = tp_and_rank(args.tp, os.environ)
    # Imported here: torch takes seconds, and mistakes in the options should not.
    from telechat.quant.compress import compress

    is_complete = compress(
        model,
        out,
        tp=tp,
        rank=rank,
        split_out=args.save_split_w8a8s_dir,
        num_workers=args.multiprocess_num,
        on_part=_show,
    )
    if is_complete:
        print(out)
    return 0


def tp_and_rank(tp: int | None, environment: Mapping[str, str]) -> tuple[int, int | None]:
    """How many ranks, and which of them this process is; None for all: no launcher has started it.

    Raises:
        UsageError: a launcher started another number of processes than --tp asks for.
    """
    size, rank = environment.get("WORLD_SIZE", ""), environment.get("RANK", "")
    if not size.isdecimal() or not rank.isdecimal():
        return tp or 1, None
    if tp is not None and tp != int(size):
        raise UsageError(
            f"--tp is {tp}, but {size} processes were started.", hint="Leave --tp out under torchrun."
        )
    return int(size), int(rank)


def _show(part: PartDone) -> None:
    """Size of a part that is done."""
    if part.num_split_bytes is None:
        print(f"{part.path}: is there", file=sys.stderr)
        return
    share = part.num_bytes / part.num_split_bytes
    print(f"{part.path}: {part.num_bytes} bytes, {share:.1%} of the split W8A8S weights", file=sys.stderr)

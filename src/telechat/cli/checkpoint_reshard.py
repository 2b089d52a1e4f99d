"""`telechat checkpoint reshard`: the slices of some ranks as the slices of others."""

from __future__ import annotations

import argparse
from pathlib import Path

from telechat.cli.checkpoint_options import ByteProgress, add_slicing_options, named_target, wanted_strategy
from telechat.cli.parser import CommandParser

EXAMPLES = (
    "telechat checkpoint reshard runs/demo-mp2 runs/demo-pp2 --layout pp2,mp1",
    "telechat checkpoint reshard output/checkpoint new --strategy output/strategy --to-strategy wanted",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat checkpoint reshard`."""
    parser.add_argument("source", type=Path, metavar="SRC", help="a folder with rank_0, rank_1, …")
    parser.add_argument("target", type=Path, metavar="DST", help="a folder that does not exist yet")
    parser.add_argument(
        "--strategy",
        type=Path,
        metavar="PATH",
        help="strategy file, or folder of them, of SRC (default: a folder `strategy` in or beside it)",
    )
    add_slicing_options(parser)


def run(args: argparse.Namespace) -> int:
    """Reshard, with progress on stderr; the target's name goes to stdout."""
    from telechat.checkpoint.formats.transform import plan_slices, source_strategy, whole_values
    from telechat.checkpoint.formats.writing import check_target, write_target

    check_target(args.target)
    whole = whole_values(args.source, source_strategy(args.source, args.strategy))
    strategy = wanted_strategy(args)
    plan = plan_slices(args.source, whole, strategy, prefix=args.prefix, subfolder=named_target(args.source))
    write_target(args.target, plan, ByteProgress())
    print(args.target)
    return 0

"""`telechat checkpoint merge`: the slices of several ranks as one checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from telechat.cli.checkpoint_options import ByteProgress, add_prefix
from telechat.cli.parser import CommandParser

EXAMPLES = (
    "telechat checkpoint merge output/checkpoint_network merged --strategy output/strategy",
    "telechat checkpoint convert merged runs/merged-hf --to hf --model-config config.json",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat checkpoint merge`."""
    parser.add_argument("source", type=Path, metavar="SRC", help="a folder with rank_0, rank_1, …")
    parser.add_argument("target", type=Path, metavar="DST", help="a folder that does not exist yet")
    parser.add_argument(
        "--strategy",
        type=Path,
        metavar="PATH",
        help="strategy file, or folder of them, of SRC (default: a folder `strategy` in or beside it)",
    )
    add_prefix(parser)


def run(args: argparse.Namespace) -> int:
    """Merge, with progress on stderr; the target's name goes to stdout."""
    from telechat.checkpoint.formats.transform import plan_whole, source_strategy, whole_values
    from telechat.checkpoint.formats.writing import check_target, write_target

    check_target(args.target)
    whole = whole_values(args.source, source_strategy(args.source, args.strategy))
    write_target(args.target, plan_whole(args.source, whole, prefix=args.prefix), ByteProgress())
    print(args.target)
    return 0

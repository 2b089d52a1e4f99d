"""`telechat checkpoint split`: one checkpoint as the slices of several ranks."""

from __future__ import annotations

import argparse
from pathlib import Path

from telechat.cli.checkpoint_options import ByteProgress, add_slicing_options, named_target, wanted_strategy
from telechat.cli.parser import CommandParser
from telechat.errors import UsageError

EXAMPLES = (
    "telechat checkpoint split runs/demo-ms runs/demo-mp2 --layout dp1,mp2",
    "telechat checkpoint split telechat_7B.ckpt transformed --to-strategy output/strategy",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat checkpoint split`."""
    parser.add_argument("source", type=Path, metavar="SRC", help="a MindSpore file, or a folder with one")
    parser.add_argument("target", type=Path, metavar="DST", help="a folder that does not exist yet")
    add_slicing_options(parser)


def run(args: argparse.Namespace) -> int:
    """Split, with progress on stderr; the target's name goes to stdout."""
    from telechat.checkpoint.formats.transform import plan_slices, whole_values
    from telechat.checkpoint.formats.writing import check_target, write_target
    from telechat.checkpoint.mindspore.ranks import find_ranks

    check_target(args.target)
    if len(find_ranks(args.source)) > 1:
        raise UsageError(f"{args.source} is sliced already.", hint="Use telechat checkpoint reshard.")
    whole = whole_values(args.source, None)
    strategy = wanted_strategy(args)
    plan = plan_slices(args.source, whole, strategy, prefix=args.prefix, subfolder=named_target(args.source))
    write_target(args.target, plan, ByteProgress())
    print(args.target)
    return 0

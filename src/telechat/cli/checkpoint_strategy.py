"""`telechat checkpoint strategy`: the strategy files of a layout, without training."""

from __future__ import annotations

import argparse
from pathlib import Path

from telechat.cli.parser import CommandParser

EXAMPLES = (
    "telechat checkpoint strategy runs/strategy --model-config config.json --layout dp8,mp2",
    "telechat checkpoint split telechat_7B.ckpt transformed --to-strategy runs/strategy",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat checkpoint strategy`."""
    parser.add_argument("target", type=Path, metavar="OUT", help="a folder that does not exist yet")
    parser.add_argument(
        "--model-config",
        type=Path,
        required=True,
        metavar="FILE",
        help="config.json or MindFormers' predict_*.yaml of the model",
    )
    parser.add_argument(
        "--layout", required=True, metavar="AXES", help="ranks, such as dp8,mp2 or dp2,mp4,pp2,ep2,opt"
    )


def run(args: argparse.Namespace) -> int:
    """Write the files; the folder's name goes to stdout."""
    from telechat.checkpoint.formats.opening import read_model_config
    from telechat.checkpoint.formats.transform import strategy_plan
    from telechat.checkpoint.formats.writing import write_target
    from telechat.checkpoint.mindspore.layouts import parse_layout, strategy_of

    strategy = strategy_of(read_model_config(args.model_config), parse_layout(args.layout))
    write_target(args.target, strategy_plan(strategy))
    print(args.target)
    return 0

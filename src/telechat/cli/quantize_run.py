"""`telechat quantize run`: a quantised model folder from a plain one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from telechat.cli.parser import CommandParser

EXAMPLES = (
    "telechat quantize run demo runs/demo-int4 --bits 4 --group-size 64",
    'telechat generate runs/demo-int4 --input-text "生抽与老抽的区别？"',
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat quantize run`."""
    parser.add_argument("model", metavar="MODEL", help="a folder, a hub id, or `demo`")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make; it must not exist")
    parser.add_argument(
        "--method", default="rtn", metavar="NAME", help="rtn, round to nearest, needs no data (default: rtn)"
    )
    parser.add_argument(
        "--bits", type=int, choices=(4, 8), default=4, help="bits of a weight, 4 or 8 (default: 4)"
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        default=32,
        help="inputs that share a scale; fewer are more exact, more take less memory (default: 32)",
    )


def run(args: argparse.Namespace) -> int:
    """Quantise, with progress on stderr; the folder's name goes to stdout."""
    from telechat.quant import QuantizeConfig, quantize

    config = QuantizeConfig(method=args.method, bits=args.bits, group_size=args.group_size)
    print(quantize(args.model, args.out, config, on_progress=_show))
    return 0


def _show(num_done: int, num_all: int) -> None:
    """One line that is written over on a terminal, a line per tenth elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{num_done} of {num_all} tensors", end="\n" if num_done == num_all else "", file=sys.stderr)
    elif num_done * 10 // num_all != (num_done - 1) * 10 // num_all:
        print(f"{num_done} of {num_all} tensors", file=sys.stderr)

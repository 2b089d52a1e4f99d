"""`telechat data demo`: the rows the demo model is trained and tested on."""

from __future__ import annotations

import argparse
from pathlib import Path

from telechat.cli.parser import CommandParser, positive_int

EXAMPLES = (
    "telechat data demo --output runs/demo-train.jsonl --rows 1000",
    "telechat data demo --output runs/demo-test.jsonl --rows 500 --split test",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat data demo`."""
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .jsonl file to write")
    parser.add_argument("--rows", type=positive_int, default=1000, metavar="N", help="rows (default: 1000)")
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        default="train",
        help="test rows use wordings and numbers that no train row has (default: train)",
    )
    parser.add_argument("--task", action="append", metavar="NAME", help="only this task; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same rows (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Write the rows and print how many."""
    from telechat.data.demo import write_jsonl

    write_jsonl(args.output, args.rows, args.split, args.seed, tasks=args.task)
    print(f"{args.rows} rows in {args.output}")
    return 0

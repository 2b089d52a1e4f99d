"""`telechat train`: train a model from a recipe, any field of which a flag can replace."""

from __future__ import annotations

import argparse
from pathlib import Path

from telechat.cli.parser import CommandParser

EXAMPLES = (
    "telechat train --config recipes/demo.yaml",
    "telechat train --config recipes/demo.yaml --schedule.total-steps 10 --output.folder runs/try",
)
LOG_LEVEL = "info"


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat train`."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the recipe, a YAML file")
    parser.add_argument(
        "--on-bad-row", choices=("skip", "stop"), help="at malformed rows; short for --data.on-bad-row"
    )
    from telechat.config import dotted_keys
    from telechat.train.config import TrainConfig

    parser.override_keys = frozenset(dotted_keys(TrainConfig))
    parser.add_argument_group(
        "fields of the recipe",
        "--section.key value replaces a field, --key value one without a section: "
        "--schedule.warmup-steps 100, --seed 7",
    )


def run(args: argparse.Namespace) -> int:
    """Hand over to the trainer."""
    from telechat.train.run import main

    short = {} if args.on_bad_row is None else {"data.on_bad_row": args.on_bad_row}
    main(str(args.config), {**short, **args.overrides})
    return 0

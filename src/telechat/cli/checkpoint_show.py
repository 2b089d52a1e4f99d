"""`telechat checkpoint show`: what a file or folder holds, in one screen."""

from __future__ import annotations

import argparse

from telechat.cli.checkpoint_options import SOURCE_HELP, source_path
from telechat.cli.parser import CommandParser

EXAMPLES = ("telechat checkpoint show demo", "telechat checkpoint show output/checkpoint")


def add_arguments(parser: CommandParser) -> None:
    """Declare the arguments of `telechat checkpoint show`."""
    parser.add_argument("source", metavar="SRC", help=SOURCE_HELP)


def run(args: argparse.Namespace) -> int:
    """Print the screen."""
    from telechat.checkpoint.formats.overview import describe

    print("\n".join(describe(source_path(args.source))))
    return 0

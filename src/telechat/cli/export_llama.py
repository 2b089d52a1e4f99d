"""`telechat export llama`: a folder that stock transformers runs, and the command that serves it."""

from __future__ import annotations

import argparse

from telechat.cli.checkpoint_convert import add_dtype
from telechat.cli.export_options import add_export_arguments, add_length, export, print_commands
from telechat.cli.parser import CommandParser

EXAMPLES = (
    "telechat export llama demo runs/demo-for-transformers",
    "telechat checkpoint verify demo runs/demo-for-transformers",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat export llama`."""
    add_export_arguments(parser)
    add_length(parser)
    add_dtype(parser)


def run(args: argparse.Namespace) -> int:
    """Export; the command goes to stdout."""
    from telechat.device import parse_dtype

    export(args, "llama", dtype=parse_dtype(args.dtype) if args.dtype else None)
    print_commands([["transformers", "serve", args.target.resolve()]])
    return 0

"""What the export verbs share: model and folder, and the command that is printed at the end."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from telechat.cli.checkpoint_options import SOURCE_HELP, ByteProgress, add_source_options, open_source
from telechat.cli.parser import CommandParser, positive_int
from telechat.errors import UsageError


def add_export_arguments(parser: CommandParser) -> None:
    """Add MODEL and OUT, and what completes a model."""
    parser.add_argument("source", metavar="MODEL", help=SOURCE_HELP)
    parser.add_argument("target", type=Path, metavar="OUT", help="a folder that does not exist yet")
    add_source_options(parser)


def add_length(parser: CommandParser) -> None:
    """Add --length."""
    parser.add_argument(
        "--length",
        type=positive_int,
        metavar="TOKENS",
        help="context that the rotary base is fixed for (default: the trained length)",
    )


def export(args: argparse.Namespace, to: str, **options: object) -> int:
    """Convert the model; returns its context in tokens."""
    from telechat.checkpoint.formats.convert import ConvertOptions, convert

    if args.target.suffix == ".gguf":
        raise UsageError(
            f"OUT is a folder here, and {args.target.name} is the name of a file.",
            hint="A single file: telechat checkpoint convert MODEL FILE.gguf --to gguf.",
        )
    source = open_source(args.source, args)
    chosen = ConvertOptions(length=args.length, **options)  # type: ignore[arg-type]
    convert(source, args.target, to, chosen, on_progress=ByteProgress())
    length: int = args.length or source.config.training_seqlen
    return length


def name_of(args: argparse.Namespace) -> str:
    """A model name for the other program, from the folder's."""
    return re.sub(r"[^a-z0-9._-]+", "-", args.target.resolve().name.lower()).strip("-.") or "telechat"


def print_commands(commands: Sequence[Sequence[object]]) -> None:
    """The commands that serve the model, ready to be pasted, on stdout."""
    print("Serve it with:", file=sys.stderr)
    for command in commands:
        print(shlex.join(str(word) for word in command))

"""`telechat export ollama`: a folder with a Modelfile, and the commands that take it into Ollama."""

from __future__ import annotations

import argparse

from telechat.cli.checkpoint_convert import add_gguf_type
from telechat.cli.export_options import add_export_arguments, add_length, export, name_of, print_commands
from telechat.cli.parser import CommandParser

EXAMPLES = (
    "telechat export ollama demo runs/demo-for-ollama",
    "telechat export ollama TeleAI/TeleChat2-7B runs/telechat2-7b --gguf-type Q4_0",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat export ollama`."""
    add_export_arguments(parser)
    add_length(parser)
    add_gguf_type(parser)


def run(args: argparse.Namespace) -> int:
    """Export; the commands go to stdout."""
    export(args, "gguf", gguf_type=args.gguf_type)
    name = name_of(args)
    create = ["ollama", "create", name, "-f", args.target.resolve() / "Modelfile"]
    print_commands([create, ["ollama", "run", name]])
    return 0

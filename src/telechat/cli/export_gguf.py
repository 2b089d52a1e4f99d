"""`telechat export gguf`: a file that stock llama.cpp serves, and the command that does so."""

from __future__ import annotations

import argparse

from telechat.cli.checkpoint_convert import add_gguf_type
from telechat.cli.export_options import add_export_arguments, add_length, export, print_commands
from telechat.cli.parser import CommandParser, port_number

EXAMPLES = (
    "telechat export gguf demo runs/demo-for-llama-cpp",
    "telechat export gguf TeleAI/TeleChat2-7B runs/7b-q8 --gguf-type Q8_0",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat export gguf`."""
    add_export_arguments(parser)
    add_length(parser)
    add_gguf_type(parser)
    parser.add_argument("--port", type=port_number, default=8080, help="of the service (default: 8080)")


def run(args: argparse.Namespace) -> int:
    """Export; the command goes to stdout."""
    length = export(args, "gguf", gguf_type=args.gguf_type)
    [file] = args.target.resolve().glob("*.gguf")
    print_commands([["llama-server", "--model", file, "--ctx-size", length, "--port", args.port, "--jinja"]])
    return 0

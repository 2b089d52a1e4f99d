"""`telechat export vllm`: a folder that stock vLLM serves, and the command that does so."""

from __future__ import annotations

import argparse

from telechat.cli.checkpoint_convert import add_dtype
from telechat.cli.export_options import add_export_arguments, add_length, export, name_of, print_commands
from telechat.cli.parser import CommandParser, port_number, positive_int

EXAMPLES = (
    "telechat export vllm demo runs/demo-for-vllm",
    "telechat export vllm TeleAI/TeleChat2-35B runs/35b --tp 2 --port 8000",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat export vllm`."""
    add_export_arguments(parser)
    add_length(parser)
    add_dtype(parser)
    parser.add_argument(
        "--tp", type=positive_int, default=1, metavar="N", help="devices to share it (default: 1)"
    )
    parser.add_argument("--port", type=port_number, default=8000, help="of the service (default: 8000)")


def run(args: argparse.Namespace) -> int:
    """Export; the command goes to stdout."""
    from telechat.device import parse_dtype

    length = export(args, "llama", dtype=parse_dtype(args.dtype) if args.dtype else None)
    command = ["vllm", "serve", args.target.resolve(), "--served-model-name", name_of(args)]
    command += ["--max-model-len", length, "--tensor-parallel-size", args.tp, "--port", args.port]
    print_commands([command])
    return 0

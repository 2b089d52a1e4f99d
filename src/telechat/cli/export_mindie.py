"""`telechat export mindie`: the folder that MindIE's service expects, and the command that starts it."""

from __future__ import annotations

import argparse

from telechat.cli.checkpoint_convert import add_dtype
from telechat.cli.checkpoint_options import ByteProgress, open_source
from telechat.cli.export_options import add_export_arguments, name_of, print_commands
from telechat.cli.parser import CommandParser, port_number, positive_int

EXAMPLES = (
    "telechat export mindie demo runs/demo-for-mindie --dtype float16",
    "telechat export mindie TeleAI/TeleChat2-35B runs/35b --tp 2 --qkv-concat",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat export mindie`."""
    add_export_arguments(parser)
    add_dtype(parser)
    parser.add_argument(
        "--tp", type=positive_int, default=1, metavar="N", help="devices to share it (default: 1)"
    )
    parser.add_boolean("--qkv-concat", help="fuse queries with keys and values, gate with up")
    parser.add_argument(
        "--max-seq-len",
        type=positive_int,
        metavar="TOKENS",
        help="prompt and answer together (default: the trained length)",
    )
    parser.add_argument("--port", type=port_number, default=1025, help="of the service (default: 1025)")


def run(args: argparse.Namespace) -> int:
    """Export; the command goes to stdout."""
    from telechat.checkpoint.formats.mindie import MindieSettings, plan_mindie
    from telechat.checkpoint.formats.writing import check_target, write_target
    from telechat.device import parse_dtype

    check_target(args.target)
    settings = MindieSettings(
        tp=args.tp,
        qkv_concat=args.qkv_concat,
        max_seq_len=args.max_seq_len,
        port=args.port,
        name=name_of(args),
        target=args.target.resolve(),
    )
    source = open_source(args.source, args)
    plan = plan_mindie(source, settings, dtype=parse_dtype(args.dtype) if args.dtype else None)
    write_target(args.target, plan, ByteProgress())
    print_commands([["cd", settings.target], ["mindieservice_daemon"]])
    return 0

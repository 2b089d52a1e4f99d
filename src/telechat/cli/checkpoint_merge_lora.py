"""`telechat checkpoint merge-lora`: LoRA matrices merged into the weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from telechat.cli.checkpoint_options import (
    SOURCE_HELP,
    ByteProgress,
    add_prefix,
    add_source_options,
    open_source,
)
from telechat.cli.parser import CommandParser
from telechat.errors import UsageError

EXAMPLES = (
    "telechat checkpoint merge-lora telechat_7B_lora.ckpt merged --scaling 2",
    "telechat checkpoint merge-lora TeleChat2-7B runs/merged --adapter runs/lora/adapter",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat checkpoint merge-lora`."""
    parser.add_argument("source", metavar="SRC", help=SOURCE_HELP)
    parser.add_argument("target", type=Path, metavar="DST", help="a folder that does not exist yet")
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="FOLDER",
        help="a PEFT adapter to merge; the result is an official folder (default: SRC is a MindSpore "
        "checkpoint that holds the matrices, and so is the result without them)",
    )
    parser.add_argument(
        "--scaling",
        type=float,
        metavar="S",
        help="factor of the product: alpha / rank (default: by the adapter's config; a MindSpore checkpoint "
        "does not say it)",
    )
    add_prefix(parser)
    add_source_options(parser)


def run(args: argparse.Namespace) -> int:
    """Merge, with progress on stderr; the target's name goes to stdout."""
    from telechat.checkpoint.formats.adapters import with_adapter
    from telechat.checkpoint.formats.convert import convert
    from telechat.checkpoint.formats.transform import plan_whole, source_strategy, whole_values
    from telechat.checkpoint.formats.writing import check_target, write_target
    from telechat.checkpoint.mindspore.lora import merged_lora

    check_target(args.target)
    if args.adapter is not None:
        merged = with_adapter(open_source(args.source, args), args.adapter, args.scaling)
        convert(merged, args.target, "hf", on_progress=ByteProgress())
        print(args.target)
        return 0
    if args.scaling is None:
        raise UsageError(
            "A MindSpore checkpoint does not say how its LoRA matrices are scaled.",
            hint="Give --scaling: lora_alpha / lora_rank of the run, 16 / 8 = 2 in MindFormers' files.",
        )
    source = Path(args.source)
    values = whole_values(source, source_strategy(source, args.strategy))
    plan = plan_whole(source, merged_lora(values, args.scaling), prefix=args.prefix)
    write_target(args.target, plan, ByteProgress())
    print(args.target)
    return 0

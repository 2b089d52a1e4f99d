"""`telechat checkpoint extract-lora`: the LoRA matrices of a MindSpore checkpoint as a PEFT adapter."""

from __future__ import annotations

import argparse
from pathlib import Path

from telechat.cli.parser import CommandParser

EXAMPLES = (
    "telechat checkpoint extract-lora telechat_7B_lora.ckpt adapter --alpha 16 --model-config config.json",
    "telechat checkpoint merge-lora TeleChat2-7B merged --adapter adapter",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat checkpoint extract-lora`."""
    parser.add_argument("source", type=Path, metavar="SRC", help="a MindSpore file, or a folder of ranks")
    parser.add_argument("target", type=Path, metavar="DST", help="a folder that does not exist yet")
    parser.add_argument(
        "--alpha", type=float, required=True, help="lora_alpha of the run; 16 in MindFormers' files"
    )
    parser.add_argument(
        "--spelling",
        choices=("official", "llama"),
        default="official",
        help="names of the layers: TeleChat's, or those of the Llama export (default: official)",
    )
    parser.add_argument(
        "--model-config",
        type=Path,
        required=True,
        metavar="FILE",
        help="config.json or MindFormers' predict_*.yaml of the model",
    )
    parser.add_argument(
        "--strategy",
        type=Path,
        metavar="PATH",
        help="strategy file, or folder of them, of SRC (default: a folder `strategy` in or beside it)",
    )


def run(args: argparse.Namespace) -> int:
    """Extract; the folder's name goes to stdout."""
    from telechat.checkpoint.adapter_folder import write_adapter
    from telechat.checkpoint.formats.opening import read_model_config
    from telechat.checkpoint.formats.transform import source_strategy, whole_values
    from telechat.checkpoint.formats.writing import check_target
    from telechat.checkpoint.mindspore.lora import as_adapter

    check_target(args.target)
    config = read_model_config(args.model_config)
    values = whole_values(args.source, source_strategy(args.source, args.strategy))
    write_adapter(as_adapter(values, args.alpha), args.target, config, spelling=args.spelling)
    print(args.target)
    return 0

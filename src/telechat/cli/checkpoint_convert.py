"""`telechat checkpoint convert`: a checkpoint in another format."""

from __future__ import annotations

import argparse
from pathlib import Path

from telechat.cli.checkpoint_options import SOURCE_HELP, ByteProgress, add_source_options, source_path
from telechat.cli.parser import CommandParser, byte_size, positive_int

EXAMPLES = (
    "telechat checkpoint convert demo runs/demo-llama --to llama",
    "telechat checkpoint convert demo runs/demo.gguf --to gguf --gguf-type Q8_0",
)
_FORMATS = ("hf", "llama", "gguf", "mindspore", "dcp")
_GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat checkpoint convert`."""
    parser.add_argument("source", metavar="SRC", help=SOURCE_HELP)
    parser.add_argument("target", type=Path, metavar="DST", help="a file or folder that does not exist yet")
    parser.add_argument(
        "--to",
        required=True,
        choices=_FORMATS,
        help="the format to write; after an interruption the same command continues, only dcp begins anew",
    )
    add_dtype(parser)
    parser.add_argument(
        "--max-shard-size",
        type=byte_size,
        metavar="SIZE",
        help="hf, llama: largest weight file (default: 5GB)",
    )
    parser.add_argument(
        "--length",
        type=positive_int,
        metavar="TOKENS",
        help="llama, gguf: context that the rotary base is fixed for (default: the trained length)",
    )
    add_gguf_type(parser)
    add_mindspore_options(parser)
    add_source_options(parser)


def add_gguf_type(parser: CommandParser) -> None:
    """Add --gguf-type."""
    parser.add_argument(
        "--gguf-type",
        choices=_GGUF_TYPES,
        help="gguf: encoding of the weights; the K types need llama-cpp-python: pip install 'telechat[gguf]' "
        "(default: the source's dtype)",
    )


def add_dtype(parser: CommandParser) -> None:
    """Add --dtype."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="dtype of the tensors (default: as they are)",
    )


def add_mindspore_options(parser: CommandParser) -> None:
    """Add the options of MindSpore's layouts."""
    group = parser.add_argument_group("mindspore")
    parser.add_boolean("--qkv-concat", help="mindspore: fuse queries with keys and values, gate with up")
    parser.add_boolean("--gmm", help="mindspore: experts transposed, in float32, for grouped products")
    group.add_argument(
        "--layout", metavar="AXES", help="slices for ranks, such as dp2,mp4,pp2,ep2,opt (default: one file)"
    )
    group.add_argument("--prefix", metavar="TEXT", help="beginning of file names (default: checkpoint_)")
    parser.add_boolean("--crc", help="mindspore: end files with a CRC")
    group.add_argument(
        "--row-order",
        metavar="N|heads",
        help="TeleChat1-52B only, of its MindSpore file, read or written: rows of fused tensors for N ranks, "
        "or by head as the official converter leaves them for one",
    )


def run(args: argparse.Namespace) -> int:
    """Convert, with progress on stderr; the target's name goes to stdout."""
    from telechat.checkpoint.formats.convert import ConvertOptions, check_options, convert
    from telechat.checkpoint.formats.opening import open_checkpoint
    from telechat.checkpoint.mindspore.layouts import parse_layout
    from telechat.checkpoint.mindspore.telechat1_52b import PLAIN, parse_row_order
    from telechat.device import parse_dtype

    order = parse_row_order(args.row_order) if args.row_order else None
    options = ConvertOptions(
        dtype=parse_dtype(args.dtype) if args.dtype else None,
        max_shard_bytes=args.max_shard_size,
        length=args.length,
        gguf_type=args.gguf_type,
        qkv_concat=args.qkv_concat,
        gmm=args.gmm,
        layout=parse_layout(args.layout) if args.layout else None,
        prefix=args.prefix,
        crc=args.crc,
        row_order=order if args.to == "mindspore" else None,
    )
    check_options(args.to, options)
    source = open_checkpoint(
        source_path(args.source),
        config=args.model_config,
        strategy=args.strategy,
        row_order=order if args.to != "mindspore" and order is not None else PLAIN,
    )
    convert(source, args.target, args.to, options, on_progress=ByteProgress())
    print(args.target)
    return 0

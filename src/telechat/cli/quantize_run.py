"""`telechat quantize run`: a quantised model folder from a plain one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telechat.cli.parser import CommandParser
from telechat.errors import UsageError

if TYPE_CHECKING:
    from telechat.quant import LayerDone

EXAMPLES = (
    "telechat quantize run demo runs/demo-int4 --bits 4 --group-size 64",
    'telechat generate runs/demo-int4 --input-text "生抽与老抽的区别？"',
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat quantize run`."""
    parser.add_argument("model", metavar="MODEL", help="a folder, a hub id, or `demo`")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make; it must not exist")
    parser.add_argument(
        "--method",
        default="rtn",
        metavar="NAME",
        help="rtn, round to nearest, needs no data; gptq is closer to the model (default: rtn)",
    )
    parser.add_argument("--bits", type=int, default=4, help="bits of a weight: 4, 8, or gptq 2 (default: 4)")
    parser.add_argument(
        "--group-size",
        type=int,
        default=None,
        help="inputs that share a scale; fewer are more exact, more take less memory. rtn: 32, 64 or 128 "
        "(default: 32); gptq: any that divides the layers, -1 for one scale per output (default: 128)",
    )
    add_calibration(parser)
    gptq = parser.add_argument_group("gptq")
    gptq.add_argument("--damp", type=float, default=0.01, help="damping of the Hessian (default: 0.01)")
    gptq.add_argument(
        "--checkpoint-format",
        choices=("gptq", "gptq_v2"),
        default="gptq",
        help="how zero points are stored; every reader knows the first (default: gptq)",
    )
    gptq.add_argument(
        "--bits-for",
        action="append",
        default=[],
        type=_pattern_and_bits,
        metavar="PATTERN=BITS",
        help="other bits for the layers whose names match, as '*.down_proj=8'; may be repeated",
    )
    gptq.add_argument(
        "--average-bits",
        type=float,
        default=None,
        help="more bits for the layers that lose most, with at most this average over all weights",
    )
    parser.add_boolean("--desc-act", help="gptq: round the inputs that matter most first")
    parser.add_boolean("--sym", default=True, help="gptq: no zero points (default: True)")
    parser.add_boolean(
        "--static-groups",
        default=True,
        help="gptq with --desc-act: keep groups together, which the fast kernels need (default: True)",
    )
    parser.add_boolean(
        "--true-sequential",
        default=True,
        help="gptq: layers of a block see what the quantised ones before them give (default: True)",
    )


def add_calibration(parser: CommandParser) -> None:
    """Declare the options that name calibration rows."""
    rows = parser.add_argument_group("calibration")
    rows.add_argument(
        "--calib",
        nargs="+",
        default=None,
        metavar="FILE",
        help="rows to calibrate with: JSON Lines of any row format of training, or .txt with a text per line",
    )
    rows.add_argument("--calib-rows", type=int, default=128, help="how many rows at most (default: 128)")
    rows.add_argument(
        "--calib-length", type=int, default=2048, help="longer rows are cut to so many tokens (default: 2048)"
    )


def run(args: argparse.Namespace) -> int:
    """Quantise, with progress on stderr; the folder's name goes to stdout."""
    from telechat.quant import QuantizeConfig, quantize

    config = QuantizeConfig(
        method=args.method,
        bits=args.bits,
        group_size=args.group_size,
        desc_act=args.desc_act,
        sym=args.sym,
        damp_percent=args.damp,
        static_groups=args.static_groups,
        true_sequential=args.true_sequential,
        checkpoint_format=args.checkpoint_format,
        bits_for=tuple(args.bits_for),
        average_bits=args.average_bits,
    )
    calibration = None if args.calib is None else _read_calibration(args)
    out = quantize(
        args.model, args.out, config, calibration=calibration, on_progress=_show, on_layer=_show_layer
    )
    print(out)
    return 0


def _read_calibration(args: argparse.Namespace) -> Any:
    from telechat.checkpoint import resolve_model
    from telechat.quant.calibration import from_files
    from telechat.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve_model(args.model))
    rows = from_files(args.calib, tokenizer, num_rows=args.calib_rows, length=args.calib_length)
    print(f"calibration: {len(rows.rows)} rows, {rows.num_tokens} tokens", file=sys.stderr)
    return rows


def _pattern_and_bits(word: str) -> tuple[str, int]:
    pattern, equals, bits = word.rpartition("=")
    if not equals or not pattern or not bits.isdecimal():
        raise UsageError(f"--bits-for {word!r}: write PATTERN=BITS, as '*.down_proj=8'.")
    return pattern, int(bits)


def _show(num_done: int, num_all: int) -> None:
    """One line that is written over on a terminal, a line per tenth elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{num_done} of {num_all} tensors", end="\n" if num_done == num_all else "", file=sys.stderr)
    elif num_done * 10 // num_all != (num_done - 1) * 10 // num_all:
        print(f"{num_done} of {num_all} tensors", file=sys.stderr)


def _show_layer(layer: LayerDone) -> None:
    """Error and time of a layer that is done."""
    name = layer.name.removeprefix("transformer.").removesuffix(".weight")
    note = "" if layer.num_tokens else ", no token reached it: rounded to nearest"
    print(f"{name}: {layer.bits} bits, error {layer.error:.2%}, {layer.seconds:.1f} s{note}", file=sys.stderr)

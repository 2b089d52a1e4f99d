"""`telechat quantize run`: a quantised model folder from a plain one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telechat.cli.parser import CommandParser, positive_int
from telechat.errors import UsageError

if TYPE_CHECKING:
    from telechat.quant import Calibration, Int8Config, LayerDone, QuantizeConfig

EXAMPLES = (
    "telechat quantize run demo runs/demo-int4 --bits 4 --group-size 64",
    'telechat generate runs/demo-int4 --input-text "生抽与老抽的区别？"',
)
# Options that only some methods obey, with the values that ask for nothing.
_INT8_ONLY: dict[str, object] = {
    "anti_method": "",
    "act_method": 1,
    "disable_level": "L0",
    "disable_names": [],
    "is_dynamic": False,
    "co_sparse": False,
    "part_file_size": None,
}
_WEIGHTS_ONLY: dict[str, object] = {
    "bits": 4,
    "group_size": None,
    "desc_act": False,
    "sym": True,
    "damp": 0.01,
    "static_groups": True,
    "true_sequential": True,
    "checkpoint_format": "gptq",
    "bits_for": [],
    "average_bits": None,
    "layout": "telechat",
}


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat quantize run`."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a folder, a hub id, or `demo`")
    parser.add_argument(
        "out", nargs="?", type=Path, metavar="OUT", help="the folder to make; it must not exist"
    )
    parser.add_argument(
        "--method",
        default=None,
        metavar="NAME",
        help="rtn, round to nearest, needs no data; gptq is closer to the model; w8a8: int8 activations too "
        "(default: rtn, or w8a8 with --w-bit or --a-bit)",
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
    add_gptq(parser)
    add_ascend(parser)


def add_gptq(parser: CommandParser) -> None:
    """Declare the options of GPTQ."""
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
    gptq.add_argument(
        "--layout",
        choices=("telechat", "llama"),
        default="telechat",
        help="telechat: official names; llama: what vLLM and stock transformers run, compressed-tensors with "
        "keys and values apart (default: telechat)",
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


def add_ascend(parser: CommandParser) -> None:
    """Declare the options of the Ascend tool, under its names."""
    ascend = parser.add_argument_group("w8a8, options as in the Ascend documents")
    ascend.add_argument("--model-path", default=None, metavar="MODEL", help="the same as MODEL")
    ascend.add_argument("--save-directory", type=Path, default=None, metavar="OUT", help="the same as OUT")
    ascend.add_argument(
        "--w-bit", type=int, default=None, help="bits of weights: 8, or 4 with --co-sparse; chooses w8a8"
    )
    ascend.add_argument("--a-bit", type=int, default=None, help="bits of activations: 8; chooses w8a8")
    ascend.add_argument("--device-type", choices=("cpu",), default="cpu", help="where to calibrate: cpu")
    ascend.add_argument(
        "--anti-method",
        default="",
        help="how outliers are moved into weights: m1 SmoothQuant, m2 threshold, m3 AWQ, m5 as m1, m6 "
        "searched powers (default: not at all)",
    )
    ascend.add_argument(
        "--act-method",
        type=int,
        default=1,
        help="ranges of activations: 1 extremes, 2 histogram, 3 whichever suits the layer (default: 1)",
    )
    ascend.add_argument(
        "--disable-level",
        default="L0",
        help="L1, L2, ...: so many layers whose inputs stand out most stay in floats (default: L0)",
    )
    ascend.add_argument(
        "--disable-names", nargs="+", default=[], metavar="LAYER", help="layers that stay in floats"
    )
    ascend.add_argument("--calib-file", default=None, metavar="FILE", help="the same as --calib FILE")
    ascend.add_argument(
        "--calib-texts", nargs="+", default=None, metavar="TEXT", help="texts to calibrate with"
    )
    ascend.add_argument(
        "--part-file-size",
        type=float,
        default=None,
        metavar="GB",
        help="size of a weight file (default: one file)",
    )
    ascend.add_argument(
        "--fraction",
        type=float,
        default=None,
        help="sparse weights: share of weights that use all 8 bits (default: 0.01)",
    )
    parser.add_boolean("--co-sparse", help="w8a8s: all but the largest weights within 4 bits, stored in 8")
    parser.add_boolean("--is-dynamic", help="w8a8: a scale per row of activations, found at run time")


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
    rows.add_argument(
        "--calib-rows", type=positive_int, default=128, help="of files: how many rows at most (default: 128)"
    )
    rows.add_argument(
        "--calib-length",
        type=positive_int,
        default=2048,
        help="longer rows are cut to so many tokens (default: 2048)",
    )


def run(args: argparse.Namespace) -> int:
    """Quantise, with progress on stderr; the folder's name goes to stdout."""
    model, out = one_of("MODEL", args.model, args.model_path), one_of("OUT", args.out, args.save_directory)
    # Imported here: torch takes seconds, and mistakes in the options should not.
    from telechat.quant import quantize

    out = quantize(
        model,
        out,
        _int8_config(args) if _wants_int8(args) else _weight_config(args),
        calibration=_read_calibration(args, model),
        on_progress=_show,
        on_layer=_show_layer,
    )
    print(out)
    return 0


def one_of(name: str, positional: Any, option: Any, *, verb: str = "run") -> Any:
    """What was named in either way.

    Raises:
        UsageError: neither or both.
    """
    if (positional is None) == (option is None):
        problem = "is missing" if positional is None else "is named twice"
        raise UsageError(f"{name} {problem}.", hint=f"See telechat quantize {verb} --help.")
    return option if positional is None else positional


def _wants_int8(args: argparse.Namespace) -> bool:
    """Whether activations become int8 too.

    Raises:
        UsageError: bits or a method that do not go together.
    """
    names_bits = args.w_bit is not None or args.a_bit is not None
    # The official tool's way to ask for sparse weights, which are stored in 8 bits.
    wanted = (4, 8) if args.co_sparse else (8, 8)
    if names_bits and (args.w_bit or wanted[0], args.a_bit or 8) != wanted:
        raise UsageError(
            f"--w-bit {args.w_bit or 8} --a-bit {args.a_bit or 8} cannot be made; 8 and 8 can, and "
            "4 and 8 with --co-sparse.",
            hint="For weights alone use --method gptq or rtn with --bits.",
        )
    if args.fraction is not None and not args.co_sparse:
        raise UsageError("--fraction is of sparse weights.", hint="Add --co-sparse.")
    if names_bits and args.method not in (None, "w8a8"):
        raise UsageError(f"--w-bit and --a-bit are of w8a8, not of {args.method}.")
    is_int8 = names_bits or args.method == "w8a8"
    for name, default in (_WEIGHTS_ONLY if is_int8 else _INT8_ONLY).items():
        if getattr(args, name) != default:
            method = "w8a8" if is_int8 else args.method or "rtn"
            raise UsageError(f"--{name.replace('_', '-')} says nothing to the method {method}.")
    return is_int8


def _int8_config(args: argparse.Namespace) -> Int8Config:
    from telechat.quant import Int8Config

    return Int8Config(
        anti_method=args.anti_method,
        act_method=args.act_method,
        disable_level=args.disable_level,
        disable_names=tuple(args.disable_names),
        is_dynamic=args.is_dynamic,
        fraction=(0.01 if args.fraction is None else args.fraction) if args.co_sparse else None,
        part_file_size=args.part_file_size,
    )


def _weight_config(args: argparse.Namespace) -> QuantizeConfig:
    from telechat.quant import QuantizeConfig

    return QuantizeConfig(
        method=args.method or "rtn",
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
        layout=args.layout,
    )


def _read_calibration(args: argparse.Namespace, model: str) -> Calibration | None:
    from telechat.checkpoint import resolve_model
    from telechat.quant.calibration import from_files, from_texts
    from telechat.tokenizer import load_tokenizer

    given = [value for value in (args.calib, args.calib_file, args.calib_texts) if value is not None]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError("--calib, --calib-file and --calib-texts exclude one another.")
    tokenizer = load_tokenizer(resolve_model(model))
    if args.calib_texts is not None:
        rows = from_texts(args.calib_texts, tokenizer, length=args.calib_length)
    else:
        files = args.calib or [args.calib_file]
        rows = from_files(files, tokenizer, num_rows=args.calib_rows, length=args.calib_length)
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

"""`telechat data inspect`: what training makes of a file: its kind, its tokens, its loss mask, its books."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from telechat.cli.model_options import chosen_model
from telechat.cli.parser import CommandParser, positive_int
from telechat.errors import ConfigError

EXAMPLES = (
    "telechat data inspect runs/demo-train.jsonl --rows 2",
    "telechat data inspect runs/demo-train.jsonl --max-length 512 --html runs/rows.html",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat data inspect`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="rows of any kind, or a mixing file")
    parser.add_argument(
        "--tokenizer", metavar="MODEL", help="whose tokens to show (default: $MODEL_PATH if set, else demo)"
    )
    parser.add_argument(
        "--rows",
        type=positive_int,
        default=3,
        metavar="N",
        help="samples to show (default: 3)",
    )
    parser.add_argument(
        "--max-length", type=positive_int, default=2048, metavar="N", help="longest sample (default: 2048)"
    )
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a page instead of showing samples")
    parser.add_argument(
        "--loss-on",
        choices=("answers", "turns", "all"),
        default="answers",
        help="what is learnt; turns is the official mask (default: answers)",
    )
    parser.add_argument(
        "--mode",
        choices=("default", "official"),
        default="default",
        help="official packs as the original scripts do, faults included (default: default)",
    )
    parser.add_argument(
        "--on-bad-row",
        choices=("skip", "stop"),
        default="skip",
        help="list malformed rows, or stop at the first (default: skip)",
    )


def run(args: argparse.Namespace) -> int:
    """Load the file as training would, and show it."""
    from telechat.checkpoint import resolve_model
    from telechat.data.inspection import inspect_file
    from telechat.data.inspection_html import render_html
    from telechat.data.inspection_text import render_text
    from telechat.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve_model(chosen_model(args.tokenizer)))
    inspection = inspect_file(
        args.file,
        tokenizer,
        max_length=args.max_length,
        num_samples=args.rows,
        mode=args.mode,
        loss_on=args.loss_on,
        on_bad_row=args.on_bad_row,
    )
    if args.html is None:
        colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        sys.stdout.write(render_text(inspection, colours=colours))
        return 0
    try:
        args.html.parent.mkdir(parents=True, exist_ok=True)
        args.html.write_text(render_html(inspection), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot write {args.html}: {error.strerror or error}.") from error
    print(inspection.accounting)
    print(f"the samples are in {args.html}")
    return 0

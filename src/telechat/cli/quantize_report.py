"""`telechat quantize report`: what a quantised model or cache has lost, on rows of your own."""

from __future__ import annotations

import argparse
import dataclasses
import json
from itertools import islice
from pathlib import Path

from telechat.cli.parser import CommandParser, non_negative_int, positive_int
from telechat.errors import UsageError

EXAMPLES = (
    "telechat data demo --output runs/rows.jsonl --rows 20 --split test",
    "telechat quantize report demo runs/demo-int4 --data runs/rows.jsonl --output runs/report.html",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat quantize report`."""
    parser.add_argument("first", metavar="A", help="the model before: a folder, a hub id, or `demo`")
    parser.add_argument("second", metavar="B", help="the model after")
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE",
        help="rows: JSON Lines of any row format of training, of which the answers count, or .txt with a "
        "text per line",
    )
    parser.add_argument(
        "--kv-cache-dtype",
        choices=("auto", "int8", "int4"),
        default="auto",
        help="precision of B's cache; with the same model as A and B, what the cache loses "
        "(default: auto, the model's)",
    )
    parser.add_argument("--rows", type=positive_int, default=64, help="how many rows at most (default: 64)")
    parser.add_argument(
        "--length",
        type=positive_int,
        default=1024,
        help="longer rows are cut to so many tokens (default: 1024)",
    )
    parser.add_argument("--output", type=Path, default=None, metavar="FILE", help="an HTML page to write")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="all numbers, as JSON")
    parser.add_argument(
        "--worst",
        type=non_negative_int,
        default=5,
        help="rows that both models answer, side by side (default: 5)",
    )
    parser.add_argument(
        "--max-new-tokens", type=positive_int, default=64, help="length of these answers (default: 64)"
    )
    parser.add_argument(
        "--speed-tokens",
        type=non_negative_int,
        default=32,
        help="new tokens to time; 0 times nothing (default: 32)",
    )
    parser.add_argument(
        "--demo-rows",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="held-out rows of each of the demo model's tasks that both answer; other models were not "
        "trained for them (default: 0)",
    )
    parser.add_argument(
        "--choices",
        nargs="+",
        type=Path,
        default=(),
        metavar="FILE",
        help="multiple-choice questions that both answer: CSV as C-Eval, CMMLU and MMLU have it",
    )


def run(args: argparse.Namespace) -> int:
    """Compare, print the table, write page and numbers."""
    from telechat.checkpoint import resolve_model
    from telechat.evals.choices import read_questions
    from telechat.evals.comparison import compare
    from telechat.evals.comparison_page import to_html, to_text
    from telechat.quant.calibration import read_marked
    from telechat.tokenizer import load_tokenizer

    questions = [question for path in args.choices for question in read_questions(path)]
    tokenizer = load_tokenizer(resolve_model(args.first))
    rows = list(islice(read_marked(args.data, tokenizer, length=args.length), args.rows))
    comparison = compare(
        args.first,
        args.second,
        rows,
        num_worst=args.worst,
        max_new_tokens=args.max_new_tokens,
        speed_tokens=args.speed_tokens,
        demo_rows=args.demo_rows,
        questions=questions,
        kv_cache_dtype=args.kv_cache_dtype,
    )
    print(to_text(comparison))
    if args.output is not None:
        _write(args.output, to_html(comparison))
    if args.json is not None:
        numbers = {"summary": comparison.summary(), **dataclasses.asdict(comparison)}
        _write(args.json, json.dumps(numbers, ensure_ascii=False, indent=2) + "\n")
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror or error}.") from error

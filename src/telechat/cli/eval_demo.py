"""`telechat eval demo`: a model's score on the demo tasks, on wordings and numbers never trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

from telechat.cli.model_options import add_loading_options, add_model_argument, load_llm
from telechat.cli.model_source import model_of
from telechat.cli.parser import CommandParser, positive_int

EXAMPLES = (
    "telechat eval demo demo --task arithmetic --rows 20",
    "telechat eval demo demo --rows 500 --json runs/demo-eval.json",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat eval demo`."""
    add_model_argument(parser)
    parser.add_argument(
        "--rows", type=positive_int, default=500, metavar="N", help="of each task (default: 500)"
    )
    parser.add_argument("--task", action="append", metavar="NAME", help="only this task; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same rows (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers and all wrong answers")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table of the model card")
    parser.add_argument("--max-batch-size", type=positive_int, metavar="N", help="rows computed at once")
    add_loading_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table; 1 when a task misses its goal."""
    from telechat.evals.demo import evaluate
    from telechat.evals.tasks import answer_all

    settings = {} if args.max_batch_size is None else {"max_batch_size": args.max_batch_size}
    llm = load_llm(model_of(args), args, **settings)
    report = evaluate(
        lambda prompts: answer_all(llm, prompts), rows_per_task=args.rows, seed=args.seed, tasks=args.task
    )
    table = report.to_markdown()
    print(table)
    for path, text in ((args.json, report.to_json()), (args.markdown, table)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    return 0 if report.passed else 1

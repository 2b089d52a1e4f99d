"""`telechat generate` with OpenAI's batch files: each row is a request with fields of its own."""

from __future__ import annotations

import argparse
import asyncio
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from telechat.cli.adapter_options import adapter_folders, load_adapters, rank_limit
from telechat.cli.model_options import load_llm
from telechat.cli.model_source import model_of
from telechat.cli.progress import progress_bar
from telechat.errors import UsageError

if TYPE_CHECKING:
    from telechat.engine import AsyncEngine

# Options of `telechat generate` that mean something for plain rows only, where they are given.
_NOT_HERE = (
    "system",
    "raw",
    "parse_special",
    "max_input_length",
    "return_logits",
    "return_scores",
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "seed",
    "stop",
)


def run_batch(args: argparse.Namespace) -> int:
    """Answer the rows of a batch file that are not answered yet; exit code 1 when some got no answer."""
    from telechat.serve.batch import answer_batch
    from telechat.serve.batch_file import BatchOutput, read_batch

    check_options(args)
    rows = read_batch(args.input_file)
    model = model_of(args)
    with BatchOutput(args.output, rows) as output:
        if output.num_done:
            print(f"{output.num_done} of {len(rows)} rows are answered already.", file=sys.stderr)
        missing = output.missing(rows)
        if missing:
            engine, max_batch_size = start_engine(model, args)
            try:
                with progress_bar(len(rows), output.num_done) as advance:

                    def keep(answer: dict[str, Any]) -> None:
                        output.write(answer)
                        advance(1)

                    answer_batch(engine, missing, keep, max_batch_size=max_batch_size, model_alias=args.model)
            finally:
                engine.close()
        num_unanswered = len(rows) - output.num_done
        if not num_unanswered:
            output.sort()
        num_refused = output.num_refused
    print(args.output)
    if num_refused:
        print(f"{num_refused} of {len(rows)} rows were refused; their lines say why.", file=sys.stderr)
    if num_unanswered:
        print(
            f"{num_unanswered} rows got no answer; run the same command again to ask them again.",
            file=sys.stderr,
        )
    return 1 if num_unanswered else 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect: the rows say how they are answered."""
    for name in _NOT_HERE:
        value = getattr(args, name)
        if value is not None and value is not False:
            raise UsageError(
                f"--{name.replace('_', '-')} does not go with a batch file.",
                hint=f"Write the setting into the body of the rows of {args.input_file}.",
            )


def start_engine(model: str, args: argparse.Namespace) -> tuple[AsyncEngine, int]:
    """The engine, in a process of its own as for `telechat serve`, and its batch size."""
    from telechat.checkpoint import read_config, resolve_model
    from telechat.engine import AsyncEngine
    from telechat.engine.plan import DEFAULT_MAX_BATCH_SIZE
    from telechat.tokenizer import load_tokenizer

    max_batch_size = args.max_batch_size or DEFAULT_MAX_BATCH_SIZE
    folder = resolve_model(model)
    read_config(folder)
    adapters = adapter_folders(args)
    settings = {
        "max_batch_size": max_batch_size,
        "max_loras": max(len(adapters), 1),
        "reserved_loras": len(adapters),
        **rank_limit(args),
    }
    # Rows with several answers count as so many.
    engine = AsyncEngine.spawn(
        partial(load_llm, model, args, **settings), load_tokenizer(folder), max_pending=1 << 20
    )
    try:
        if adapters:
            asyncio.run(load_adapters(engine, adapters, engine.llm.name))
    except BaseException:
        engine.close()
        raise
    return engine, max_batch_size

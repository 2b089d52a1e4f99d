"""Options that complete a model which is no official folder: MindFormers' run file, tokenizer, strategy."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from telechat.cli.parser import CommandParser

log = logging.getLogger(__name__)

MODEL_VARIABLE = "MODEL_PATH"
DEFAULT_MODEL = "demo"


def chosen_model(flag: str | None, file: str | None = None) -> str:
    """The model by flag, then environment (MODEL_PATH), then settings file, then the demo model."""
    return flag or os.environ.get(MODEL_VARIABLE) or file or DEFAULT_MODEL


def add_source_options(parser: CommandParser) -> None:
    """Add the options that say what a checkpoint does not say itself."""
    group = parser.add_argument_group("checkpoints of MindFormers and others")
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="MindFormers' predict_*.yaml, or a config.json, for a MODEL that has none",
    )
    group.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="tokenizer.model, tokenizer.json or a folder with one (default: beside the weights)",
    )
    group.add_argument(
        "--strategy",
        "--src-strategy-path-or-dir",
        type=Path,
        metavar="PATH",
        help="MindSpore strategy file, or folder of them, of a sliced MODEL (default: a folder `strategy` in "
        "or beside it)",
    )
    add_register_path(group)


def add_register_path(parser: argparse._ActionsContainer) -> None:
    """Add `--register-path`, which the original commands name the model's code with."""
    parser.add_argument(
        "--register-path",
        metavar="FOLDER",
        help="accepted for old command lines; the code in this folder is never run",
    )


def report_register_path(args: argparse.Namespace) -> None:
    """Say that `--register-path` changes nothing, where it is given."""
    if args.register_path is not None:
        log.info("--register-path %s has no effect: the code there is never run", args.register_path)


def model_of(args: argparse.Namespace) -> str:
    """The model to load, by the model argument and the options of `add_source_options`.

    Where a run file is named, options of the engine that were not given take its values.
    """
    report_register_path(args)
    if args.config is None and args.tokenizer is None and args.strategy is None:
        return chosen_model(args.model)
    from telechat.checkpoint.formats.reference import reference_folder
    from telechat.checkpoint.hub import resolve_model
    from telechat.checkpoint.mindspore.predict_config import read_predict_config

    tokenizer: Path | None = args.tokenizer
    named, generation = None, None
    if args.config is not None and args.config.suffix in (".yaml", ".yml"):
        run = read_predict_config(args.config)
        generation = run.generation
        named = str(run.checkpoint) if run.checkpoint is not None else None
        tokenizer = tokenizer or (run.tokenizer if run.tokenizer and run.tokenizer.exists() else None)
        for option in ("max_model_len", "block_size", "num_blocks"):
            if getattr(args, option) is None:
                setattr(args, option, getattr(run, option))
        if run.ignored:
            log.info("%s: not used here: %s", args.config.name, ", ".join(run.ignored))
    name = chosen_model(args.model, named)
    path = Path(name).expanduser()
    folder = reference_folder(
        path if path.exists() else resolve_model(name),
        config=args.config,
        strategy=args.strategy,
        tokenizer=tokenizer,
        generation=generation,
    )
    return str(folder)

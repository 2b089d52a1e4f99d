"""`telechat tokenizer show`: size, special tokens and chat format of a vocabulary."""

from __future__ import annotations

import argparse
import dataclasses

from telechat.cli.model_options import add_model_argument, chosen_model
from telechat.cli.parser import CommandParser

EXAMPLES = ("telechat tokenizer show demo", "telechat tokenizer show demo --log-level info")


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat tokenizer show`."""
    add_model_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the facts, one a line."""
    from telechat.checkpoint import resolve_model
    from telechat.tokenizer import load_tokenizer

    folder = resolve_model(chosen_model(args.model))
    tokenizer = load_tokenizer(folder)
    print(f"folder           {folder}")
    print(f"vocabulary size  {tokenizer.vocab_size}")
    print(f"system prompts   {'yes' if tokenizer.supports_system else 'no'}")
    print(f"tools            {'yes' if tokenizer.supports_tools else 'no'}")
    for field in dataclasses.fields(tokenizer.special):
        token_id = getattr(tokenizer.special, field.name)
        shown = "none" if token_id is None else token_id
        if isinstance(token_id, int):
            shown = f"{token_id}  {tokenizer.decode([token_id])}"
        print(f"{field.name:<15}  {shown}")
    return 0

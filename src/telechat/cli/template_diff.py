"""`telechat template diff`: the first token at which two folders write a conversation differently."""

from __future__ import annotations

import argparse

from telechat.cli.parser import CommandParser

EXAMPLES = ("telechat template diff demo runs/demo-llama", "telechat template diff TeleChat2-7B my-finetune")


def add_arguments(parser: CommandParser) -> None:
    """Declare the arguments of `telechat template diff`."""
    for name in "AB":
        parser.add_argument(name.lower(), metavar=name, help="a folder with a tokenizer, a hub id, or `demo`")


def run(args: argparse.Namespace) -> int:
    """Compare; returns 1 when they differ."""
    from pathlib import Path

    from telechat.checkpoint.hub import resolve_model
    from telechat.tokenizer import load_tokenizer
    from telechat.tokenizer.difference import CONVERSATIONS, first_difference

    first, second = (
        load_tokenizer(Path(name) if Path(name).is_dir() else resolve_model(name))
        for name in (args.a, args.b)
    )
    found = first_difference(first, second)
    if found is None:
        print(f"the same tokens in {len(CONVERSATIONS)} conversations")
        return 0
    print(f"different with {found.conversation}, at token {found.position}, behind {found.before[-60:]!r}:")
    for name, token in ((args.a, found.first), (args.b, found.second)):
        print(f"  {name}: {'nothing' if token is None else f'{token[0]} {token[1]!r}'}")
    return 1

"""`telechat tokenizer encode`: text into token ids, and back to see that nothing was lost."""

from __future__ import annotations

import argparse
import json
import sys

from telechat.cli.model_options import add_model_argument, chosen_model
from telechat.cli.parser import CommandParser

EXAMPLES = (
    'telechat tokenizer encode demo --text "你好，世界"',
    'telechat tokenizer encode demo --text "<_user>你好<_bot>" --parse-special',
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat tokenizer encode`."""
    add_model_argument(parser)
    parser.add_argument("--text", help="the text (default: read from stdin)")
    parser.add_boolean("--parse-special", help="read the literal names of control tokens as these tokens")
    parser.add_boolean("--pieces", help="print each id with the text it stands for")


def run(args: argparse.Namespace) -> int:
    """Print the ids as one JSON list, or one id and piece a line."""
    from telechat.checkpoint import resolve_model
    from telechat.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve_model(chosen_model(args.model)))
    text = sys.stdin.read() if args.text is None else args.text
    ids = tokenizer.encode(text, parse_special=args.parse_special)
    if not args.pieces:
        print(json.dumps(ids))
        return 0
    for token_id in ids:
        print(f"{token_id:>7}  {tokenizer.decode([token_id])!r}")
    return 0

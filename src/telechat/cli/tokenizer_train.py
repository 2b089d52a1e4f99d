"""`telechat tokenizer train`: a byte-level BPE vocabulary from text files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from telechat.cli.parser import CommandParser, positive_int
from telechat.errors import UsageError

EXAMPLES = (
    "telechat tokenizer train README.md README.zh.md --vocab-size 600 --output runs/tokenizer",
    "telechat tokenizer train LICENSE --vocab-size 400 --output runs/tokenizer-400",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat tokenizer train`."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="text, or .jsonl rows whose texts are found"
    )
    parser.add_argument("--vocab-size", type=positive_int, required=True, metavar="N", help="entries in all")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument(
        "--max-han-run",
        type=positive_int,
        default=3,
        metavar="N",
        help="longest run of Han characters that may become one entry (default: 3)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random cuts of Han runs (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Train and write tokenizer.json and tokenizer_config.json."""
    missing = [str(path) for path in args.files if not path.is_file()]
    if missing:
        raise UsageError(f"No such file: {', '.join(missing)}.")
    from telechat.tokenizer.train import train_tokenizer

    folder = train_tokenizer(
        read_texts(args.files),
        vocab_size=args.vocab_size,
        out_folder=args.output,
        max_han_run=args.max_han_run,
        seed=args.seed,
    )
    print(folder)
    return 0


def read_texts(paths: list[Path]) -> Iterator[str]:
    """The texts of the files: lines of a text file, conversations and strings of a .jsonl file."""
    for path in paths:
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if path.suffix == ".jsonl":
                        yield from _row_texts(_row(line, path, number))
                    else:
                        yield line
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def _row(line: str, path: Path, number: int) -> object:
    if not line.strip():
        return None
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} line {number} is not JSON: {error.msg}.") from error


def _row_texts(row: object) -> Iterator[str]:
    """A conversation is rendered, so that what its format adds is in the vocabulary too."""
    from telechat.tokenizer.train import conversation_texts

    if isinstance(row, dict) and isinstance(row.get("messages"), list):
        yield from conversation_texts(row["messages"], row.get("tools"))
    else:
        yield from _strings(row)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)

"""`telechat data preprocess`: training rows packed as MindFormers packs them, as MindRecord or arrays."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from telechat.cli.parser import CommandParser, positive_int
from telechat.errors import CheckpointError, ConfigError, UsageError

if TYPE_CHECKING:
    from telechat.data.official.mindformers import PackedRow
    from telechat.tokenizer import Tokenizer

EXAMPLES = (
    "telechat data preprocess rows.jsonl dataset.mindrecord --tokenizer tokenizer.model --max-length 8192",
    "telechat data preprocess rows.jsonl runs/packed --tokenizer demo --max-length 1024 --format mmap",
)
_FILE_NAME = "dataset.mindrecord"


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat data preprocess`."""
    parser.add_argument("source", type=Path, metavar="IN", help='rows {"input", "output"}, one JSON a line')
    parser.add_argument(
        "target", type=Path, metavar="OUT", help="a file .mindrecord, or a folder; must not exist"
    )
    parser.add_argument(
        "--tokenizer", required=True, metavar="MODEL", help="tokenizer.model, a folder, a hub id, or `demo`"
    )
    parser.add_argument(
        "--max-length", type=positive_int, default=8192, metavar="TOKENS", help="context (default: 8192)"
    )
    parser.add_argument(
        "--format",
        choices=("mindrecord", "mmap"),
        default="mindrecord",
        help="mindrecord, or arrays that our training maps (default: mindrecord)",
    )
    parser.add_argument("--seed", type=int, default=2024, help="of the shuffle (default: 2024)")
    parser.add_argument(
        "--pad-token-id", type=int, metavar="ID", help="id that fills rows up (default: the tokenizer's)"
    )
    parser.add_argument(
        "--start-token",
        default="<_start>",
        metavar="TEXT",
        help="put before each conversation; `none` for TeleChat1 (default: <_start>)",
    )
    parser.add_argument(
        "--shards",
        type=positive_int,
        default=1,
        metavar="N",
        help="mindrecord: files to write (default: 1)",
    )


def run(args: argparse.Namespace) -> int:
    """Pack; what was written goes to stdout, counts to stderr."""
    from telechat.data.official.mindformers import PackSettings, pack_rows

    if args.target.exists():
        raise CheckpointError(f"{args.target} exists already.", hint="Name one that does not, or remove it.")
    if args.shards > 1 and args.format == "mmap":
        raise UsageError(
            f"--shards {args.shards} does not go with --format mmap.",
            hint="Leave it out: that is one folder.",
        )
    rows = _read_rows(args.source)
    settings = PackSettings(
        max_length=args.max_length,
        seed=args.seed,
        start_token=None if args.start_token == "none" else args.start_token,
        pad_id=args.pad_token_id,
    )
    packed = pack_rows(rows, _tokenizer(args.tokenizer), settings)
    if not packed:
        raise ConfigError(
            f"{args.source} has too few tokens for one row of {args.max_length + 1}.",
            hint="Lower --max-length: the last row, where it is not full, is left out, as MindFormers does.",
        )
    print(f"{len(rows)} rows packed into {len(packed)} of {args.max_length + 1} tokens", file=sys.stderr)
    write = _write_mindrecord if args.format == "mindrecord" else _write_arrays
    for path in write(args, packed):
        print(path)
    return 0


def _read_rows(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    rows: list[tuple[str, str]] = []
    # Not splitlines: texts may hold other line ends of Unicode as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        question, answer = (row.get("input"), row.get("output")) if isinstance(row, dict) else (None, None)
        if not isinstance(question, str) or not isinstance(answer, str):
            raise ConfigError(
                f'{path} line {number} is no row {{"input": "…", "output": "…"}}.',
                hint="Rows of other kinds are read by training itself: telechat train.",
            )
        rows.append((question, answer))
    return rows


def _tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a file, a folder, a hub id or `demo`."""
    from telechat.checkpoint.hub import resolve_model
    from telechat.tokenizer import load_tokenizer

    path = Path(name)
    if not path.is_file():
        return load_tokenizer(path if path.is_dir() else resolve_model(name))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"tokenizer{path.suffix}").write_bytes(path.read_bytes())
        return load_tokenizer(folder)


def _write_mindrecord(args: argparse.Namespace, packed: Sequence[PackedRow]) -> list[Path]:
    from telechat.data.mindrecord import is_mindrecord
    from telechat.data.mindrecord_writing import write_mindrecord

    target: Path = args.target if is_mindrecord(args.target) else args.target / _FILE_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"input_ids": row.ids, "labels": row.labels} for row in packed]
    return write_mindrecord(target, rows, num_shards=args.shards)


def _write_arrays(args: argparse.Namespace, packed: Sequence[PackedRow]) -> list[Path]:
    """The arrays that training reads from a folder; what fills rows up is left out."""
    import numpy as np

    from telechat.data.official.mindformers import IGNORED

    ids = [row.ids[row.num_pads :] for row in packed]
    learnt = [row.labels[row.num_pads :] != IGNORED for row in packed]
    arrays = {
        "ids": np.concatenate(ids),
        "learnt": np.concatenate(learnt),
        "offsets": np.cumsum([0, *map(len, ids)]),
        "members": np.arange(len(ids)),
    }
    args.target.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(args.target / f"{name}.npy", array)
    return [args.target]

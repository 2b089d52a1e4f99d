"""`telechat checkpoint verify`: are these two checkpoints the same model? Writes a certificate."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from telechat.cli.checkpoint_options import SOURCE_HELP, ByteProgress, add_source_options, source_path
from telechat.cli.parser import CommandParser, positive_int

if TYPE_CHECKING:
    from telechat.checkpoint.formats.table import Checkpoint

EXAMPLES = (
    "telechat checkpoint convert demo runs/demo-llama --to llama",
    "telechat checkpoint verify demo runs/demo-llama",
)
PROMPTS = ("生抽与老抽的区别？", "Write a short story about the sea.", "9.11和9.8哪个大")


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat checkpoint verify`."""
    parser.add_argument("first", metavar="A", help=SOURCE_HELP)
    parser.add_argument("second", metavar="B", help="the same; usually what A was converted into")
    parser.add_argument(
        "--layers",
        type=positive_int,
        default=2,
        metavar="N",
        help="layers to compute logits with, beside embedding and head (default: 2)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where the certificate goes (default: certificate.json in B, or B.certificate.json)",
    )
    add_source_options(parser)


def run(args: argparse.Namespace) -> int:
    """Compare; a summary goes to stdout. Returns 1 when they differ."""
    from telechat.checkpoint.formats.opening import open_checkpoint
    from telechat.checkpoint.formats.verify import FILE, verify

    paths = [source_path(name) for name in (args.first, args.second)]
    named = [_completing(path, args) for path in paths]
    first, second = (
        open_checkpoint(path, config=config, strategy=strategy)
        for path, (config, strategy) in zip(paths, named, strict=True)
    )
    certificate = verify(
        first, second, _prompts(first, second), num_layers=args.layers, on_progress=ByteProgress()
    )
    target = paths[1]
    default = target / FILE if target.is_dir() else target.with_name(f"{target.name}.{FILE}")
    output: Path = args.output or default
    output.write_text(
        json.dumps(certificate.as_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    verdict = "the same" if certificate.is_same else "DIFFERENT"
    print(
        f"{verdict}: {certificate.num_equal} of {certificate.num_tensors} tensors equal, "
        f"{certificate.num_rounded} after rounding, {len(certificate.different)} different; "
        f"logits differ by {certificate.max_logit_difference:.3g}, "
        f"top-1 agreement {certificate.top1_agreement:.4f}"
    )
    for name, gap in list(certificate.different.items())[:5]:
        print(f"  {name}: {gap:.3g}")
    print(output)
    return 0 if certificate.is_same else 1


def _completing(path: Path, args: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """What was named for the one of the two that needs it: a config, and the strategy of a sliced one."""
    from telechat.checkpoint.formats.opening import SELF_DESCRIBING, kind_of

    if args.model_config is None and args.strategy is None:
        return None, None
    kind = kind_of(path)
    return (
        None if kind in SELF_DESCRIBING else args.model_config,
        args.strategy if kind == "mindspore" else None,
    )


def _prompts(first: Checkpoint, second: Checkpoint) -> list[list[int]]:
    """Real texts as tokens, if one of the two has a tokenizer."""
    from telechat.checkpoint.formats.hf import tokenizer_folder
    from telechat.errors import TokenizerError
    from telechat.tokenizer import load_tokenizer

    for checkpoint in (first, second):
        try:
            with tokenizer_folder(checkpoint) as folder:
                tokenizer = load_tokenizer(folder) if folder else None
        except TokenizerError:
            continue
        if tokenizer is not None:
            ids = [tokenizer.encode(text) for text in PROMPTS]
            return [[token for token in row if token < checkpoint.config.vocab_size] for row in ids]
    return []

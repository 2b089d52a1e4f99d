"""`telechat bundle make`: a folder that installs and runs telechat where there is no network."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from telechat.cli.model_options import chosen_model
from telechat.cli.parser import CommandParser

EXAMPLES = (
    "telechat bundle make telechat-bundle",
    "telechat bundle make telechat-bundle TeleAI/TeleChat2-7B --extra hf --python-version 3.12",
)
LOG_LEVEL = "info"


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat bundle make`."""
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make; must not exist")
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="the model to put in: a folder, a hub id, or `demo`, which is in the wheel (default: "
        "$MODEL_PATH if set, else demo)",
    )
    parser.add_argument(
        "--extra", action="append", default=[], metavar="NAME", help="also this extra; may be repeated"
    )
    parser.add_argument(
        "--platform",
        action="append",
        default=[],
        metavar="TAG",
        help="for another platform of this system, by pip's name such as manylinux_2_28_aarch64; may be "
        "repeated (default: this machine's)",
    )
    parser.add_argument(
        "--python-version",
        type=_python_version,
        metavar="3.N",
        help="for this Python (default: the one here)",
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help="checkout to build from (default: the one in use)",
    )


def _python_version(text: str) -> str:
    """An argparse type: 3.11 or newer."""
    match = re.fullmatch(r"3\.(\d+)", text)
    if match is None or int(match[1]) < 11:
        raise argparse.ArgumentTypeError(f"{text!r} is not a version such as 3.11, or older than that")
    return text


def run(args: argparse.Namespace) -> int:
    """Make the bundle and print its size."""
    from telechat.bundle import BundleSettings, make_bundle
    from telechat.cli.progress import bytes_bar

    settings = BundleSettings(
        model=chosen_model(args.model),
        extras=tuple(sorted(set(args.extra))),
        platforms=tuple(args.platform),
        python_version=args.python_version,
    )
    with bytes_bar("model") as start:
        num_bytes = make_bundle(args.out, settings, source=args.source, start=start)
    print(f"{args.out}: {num_bytes / 1e6:.0f} MB for Python {settings.python} on {settings.machine}")
    return 0

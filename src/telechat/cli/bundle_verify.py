"""`telechat bundle verify`: is every file of a bundle as it was made?"""

from __future__ import annotations

import argparse
from pathlib import Path

from telechat.cli.parser import CommandParser

EXAMPLES = ("telechat bundle verify telechat-bundle", "telechat bundle verify .")


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat bundle verify`."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the bundle")


def run(args: argparse.Namespace) -> int:
    """Print what is wrong, one file a line; 1 when anything is."""
    from telechat.bundle import verify
    from telechat.cli.progress import bytes_bar

    with bytes_bar("check") as start:
        findings = verify(args.folder, start)
    for problem in ("missing", "altered", "extra"):
        for name in getattr(findings, problem):
            print(f"{problem:<8} {name}")
    verdict = "sound" if findings.is_sound else "not sound; copy the bundle again"
    print(f"{findings.num_files} files listed: {verdict}")
    return 0 if findings.is_sound else 1

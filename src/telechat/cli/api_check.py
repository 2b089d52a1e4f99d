"""`telechat api-check`: does a server behave as OpenAI's clients expect?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telechat.cli.parser import CommandParser
from telechat.errors import UsageError

if TYPE_CHECKING:
    from telechat.conformance.check import Outcome

EXAMPLES = (
    "telechat api-check http://127.0.0.1:8070",
    "telechat api-check http://127.0.0.1:8070 --json checks.json",
)
KEY_VARIABLE = "TELECHAT_API_KEY"
_WORDS = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat api-check`."""
    parser.add_argument("url", metavar="URL", help="address of the server, with or without /v1")
    parser.add_argument("--api-key", metavar="KEY", help=f"key to send (default: ${KEY_VARIABLE})")
    parser.add_argument("--model", metavar="NAME", help="model to ask (default: the first one listed)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to a file, too")


def run(args: argparse.Namespace) -> int:
    """Run the checks; a table on stdout, exit code 1 when one has failed."""
    from telechat.conformance.api import Api
    from telechat.conformance.suite import CHECKS, run_checks

    if args.json is not None and not args.json.parent.is_dir():
        raise UsageError(
            f"The folder {args.json.parent} for --json does not exist.", hint="Make it, or correct it."
        )
    api = Api(args.url, key=args.api_key or os.environ.get(KEY_VARIABLE), model=args.model)
    outcomes: list[Outcome] = []
    width = max(len(check.name) for check in CHECKS)
    users = max(len(check.needed_by) for check in CHECKS)
    try:
        api.reach()
        for outcome in run_checks(api):
            outcomes.append(outcome)
            print(line(outcome, width, users), flush=True)
    finally:
        api.close()
    counts = {result: sum(outcome.result == result for outcome in outcomes) for result in _WORDS}
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    if args.json is not None:
        report: dict[str, Any] = {"url": api.url, "model": api.known_model, **counts}
        report["checks"] = [dataclasses.asdict(outcome) for outcome in outcomes]
        args.json.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return 1 if counts["failed"] else 0


def line(outcome: Outcome, width: int, users: int) -> str:
    """A row of the table: result, check, who relies on it; for a failure, what was found and its effect."""
    row = f"{_WORDS[outcome.result]:<8} {outcome.name:<{width}}  {outcome.needed_by:<{users}}"
    if outcome.result == "passed":
        return row.rstrip()
    detail = " ".join(outcome.detail.split())
    return f"{row}  {detail}" + (f" ({outcome.why})" if outcome.result == "failed" else "")

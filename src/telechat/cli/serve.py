"""`telechat serve`: the HTTP API for one model."""

from __future__ import annotations

import os
from pathlib import Path

from telechat.cli.model_options import add_loading_options, add_model_argument
from telechat.cli.parser import CommandParser, port_number, positive_int

EXAMPLES = ("telechat serve demo", "telechat serve demo --host 127.0.0.1 --port 8071")
LOG_LEVEL = "info"
KEY_VARIABLE = "TELECHAT_API_KEY"


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat serve`."""
    add_model_argument(parser)
    group = parser.add_argument_group("service")
    group.add_argument(
        "--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine)"
    )
    group.add_argument("--port", type=port_number, default=8070, help="port (default: 8070)")
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"key clients must send (else ${KEY_VARIABLE}); a public host without one gets one generated",
    )
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="where a generated key is kept")
    parser.add_boolean("--allow-anonymous", help="let a public host serve without a key")
    group.add_argument("--served-model-name", metavar="NAME", help="the model's name for clients")
    group.add_argument("--max-batch-size", type=positive_int, metavar="N", help="answers computed at once")
    add_loading_options(parser)


def given_keys(flag: str | None) -> tuple[str, ...]:
    """The operator's key: flag, then environment; empty when there is none."""
    key = flag or os.environ.get(KEY_VARIABLE)
    return (key,) if key else ()

"""`telechat serve`: the HTTP API for one model."""

from __future__ import annotations

import argparse
import os
from functools import partial

from telechat.cli.model_options import add_loading_options, add_model_argument, chosen_model, load_llm
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
    parser.add_boolean("--allow-anonymous", help="let a public host serve without a key")
    group.add_argument("--served-model-name", metavar="NAME", help="the model's name for clients")
    group.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this web origin call from browsers; may be repeated; * is all (default: none)",
    )
    group.add_argument("--max-batch-size", type=positive_int, metavar="N", help="answers computed at once")
    add_loading_options(parser)


def given_keys(flag: str | None) -> tuple[str, ...]:
    """The operator's key: flag, then environment; empty when there is none."""
    key = flag or os.environ.get(KEY_VARIABLE)
    return (key,) if key else ()


def run(args: argparse.Namespace) -> int:
    """Take the port, load the model, and serve until told to stop."""
    from telechat.checkpoint import read_config, resolve_model
    from telechat.engine import AsyncEngine
    from telechat.serve.server import run_server
    from telechat.serve.settings import ServeSettings
    from telechat.tokenizer import load_tokenizer

    settings = ServeSettings(
        host=args.host,
        port=args.port,
        api_keys=given_keys(args.api_key),
        allow_anonymous=args.allow_anonymous,
        served_model_name=args.served_model_name,
        cors_origins=tuple(args.cors_origin),
    )
    model = chosen_model(args.model)
    sizes = {} if args.max_batch_size is None else {"max_batch_size": args.max_batch_size}

    def start_engine() -> AsyncEngine:
        # Here and not only in the engine's process: a model that must first be fetched shows its progress,
        # and a folder that holds none costs no process.
        folder = resolve_model(model)
        read_config(folder)
        tokenizer = load_tokenizer(folder)
        return AsyncEngine.spawn(partial(load_llm, model, args, **sizes), tokenizer)

    return run_server(start_engine, settings)

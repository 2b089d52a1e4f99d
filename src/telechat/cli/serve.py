"""`telechat serve`: the HTTP API for one model."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telechat.cli.adapter_options import (
    adapter_folders,
    add_adapter_options,
    load_adapters,
    rank_limit,
)
from telechat.cli.model_options import add_loading_options, add_model_argument
from telechat.cli.model_source import model_of
from telechat.cli.parser import CommandParser, byte_size, port_number, positive_int
from telechat.cli.replica_options import load_replica, share_out
from telechat.errors import UsageError

if TYPE_CHECKING:
    from telechat.serve.contract import ServiceEngine
    from telechat.serve.settings import ServeSettings

EXAMPLES = ("telechat serve demo", "telechat serve demo --host 127.0.0.1 --port 8071")
LOG_LEVEL = "info"
KEY_VARIABLE = "TELECHAT_API_KEY"
NO_LOG = "none"


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat serve`."""
    add_model_argument(parser)
    group = parser.add_argument_group("service")
    group.add_argument("--host", help="where to listen (default: 127.0.0.1, this machine)")
    group.add_argument("--port", type=port_number, help="port (default: 8070)")
    group.add_argument(
        "--engine",
        choices=("telechat", "vllm"),
        default="telechat",
        help="vllm hands over to an installed vLLM, as plain Llama (default: telechat)",
    )
    group.add_argument("--served-model-name", metavar="NAME", help="the model's name for clients")
    group.add_argument("--max-batch-size", type=positive_int, metavar="N", help="answers computed at once")
    group.add_argument(
        "--replicas",
        type=positive_int,
        metavar="N",
        help="engines behind the port, each with the whole model; they share the devices (default: 1)",
    )
    group.add_argument(
        "--drain-timeout",
        type=positive_int,
        metavar="SECONDS",
        help="how long running answers may take once the service is told to stop (default: 30)",
    )
    group.add_argument(
        "--mindie-config",
        type=Path,
        metavar="FILE",
        help="start what MindIE's conf/config.json describes; options given beside it win",
    )
    _add_access(parser)
    _add_limits(parser)
    _add_log(parser)
    _add_adapters(parser)
    add_loading_options(parser)


def _add_access(parser: CommandParser) -> None:
    group = parser.add_argument_group("access")
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"key clients must send (else ${KEY_VARIABLE}); a public host without one gets one generated",
    )
    group.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="YAML file of keys with names and limits"
    )
    parser.add_boolean("--allow-anonymous", help="let a public host serve without a key")
    group.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this web origin call from browsers; may be repeated; * is all (default: none)",
    )
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain (PEM): serve HTTPS")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="private key of the certificate (PEM)")


def _add_limits(parser: CommandParser) -> None:
    group = parser.add_argument_group("limits", "what goes beyond them is refused with a message")
    group.add_argument(
        "--max-pending-requests",
        type=positive_int,
        metavar="N",
        help="requests running or waiting at once (default: 256)",
    )
    group.add_argument(
        "--max-prompt-tokens",
        type=positive_int,
        metavar="N",
        help="longest prompt (default: what the model's context holds)",
    )
    group.add_argument(
        "--max-body-size", type=byte_size, metavar="SIZE", help="largest request body (default: 4MiB)"
    )
    group.add_argument(
        "--request-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="longest time from a request to the end of its answer (default: no limit)",
    )


def _add_log(parser: CommandParser) -> None:
    group = parser.add_argument_group("access log")
    group.add_argument(
        "--access-log",
        metavar="FILE",
        help=f"a line of JSON for every request; - is stderr, {NO_LOG} is no log (default: - unless "
        "--log-level is above info)",
    )
    parser.add_boolean("--log-prompts", help="write prompts into the access log")


def _add_adapters(parser: CommandParser) -> None:
    group = add_adapter_options(parser)
    group.add_argument(
        "--max-loras", type=positive_int, metavar="N", help="adapters in memory at once (default: 8)"
    )
    group.add_argument(
        "--lora-dir",
        type=Path,
        metavar="FOLDER",
        help="let clients load and unload adapters from folders below this one (default: they may not)",
    )


def _seconds(text: str) -> float:
    """An argparse type: a time above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def given_keys(flag: str | None) -> tuple[str, ...]:
    """The operator's key: flag, then environment; empty when there is none."""
    key = flag or os.environ.get(KEY_VARIABLE)
    return (key,) if key else ()


def serve_settings(args: argparse.Namespace) -> ServeSettings:
    """The settings of the service; what is not given has the default of `ServeSettings`."""
    from telechat.serve.settings import ServeSettings

    given: dict[str, Any] = {
        "host": args.host,
        "port": args.port,
        "max_pending_requests": args.max_pending_requests,
        "max_prompt_tokens": args.max_prompt_tokens,
        "max_body_bytes": args.max_body_size,
        "request_seconds": args.request_timeout,
        "shutdown_seconds": args.drain_timeout,
    }
    return ServeSettings(
        api_keys=given_keys(args.api_key),
        key_file=args.api_key_file,
        allow_anonymous=args.allow_anonymous,
        served_model_name=args.served_model_name,
        cors_origins=tuple(args.cors_origin),
        access_log=_access_log(args),
        log_prompts=args.log_prompts,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        lora_dir=_lora_dir(args),
        **{name: value for name, value in given.items() if value is not None},
    )


def _lora_dir(args: argparse.Namespace) -> Path | None:
    folder: Path | None = args.lora_dir
    if folder is not None and not folder.is_dir():
        raise UsageError(
            f"The folder {folder} for --lora-dir does not exist.", hint="Make it, or correct it."
        )
    return folder


def _access_log(args: argparse.Namespace) -> str | None:
    if args.access_log is None:
        return "-" if (args.log_level or LOG_LEVEL) in ("debug", "info") else None
    return None if args.access_log == NO_LOG else str(args.access_log)


def run(args: argparse.Namespace) -> int:
    """Take the port, load the model, and serve until told to stop."""
    if args.engine == "vllm":
        from telechat.cli.vllm_engine import serve_with_vllm

        return serve_with_vllm(args, add_arguments)
    from telechat.cli.mindie_option import mindie_settings, with_mindie_config
    from telechat.serve.mindie.config_file import read_mindie_config
    from telechat.serve.server import run_server

    if args.mindie_config is None:
        settings = serve_settings(args)
    else:
        config = read_mindie_config(args.mindie_config, os.environ)
        args = with_mindie_config(args, config)
        settings = replace(serve_settings(args), **mindie_settings(config, args))
    return run_server(engine_starter(args, settings), settings)


def engine_starter(args: argparse.Namespace, settings: ServeSettings) -> Callable[[], ServiceEngine]:
    """What loads the model: one engine in a process of its own, or several."""
    from telechat.checkpoint import read_config, resolve_model
    from telechat.engine import AsyncEngine
    from telechat.serve.replicas import ReplicaSet
    from telechat.tokenizer import load_tokenizer

    model = model_of(args)
    adapters = adapter_folders(args)
    sizes = rank_limit(args)
    for name in ("max_batch_size", "max_loras"):
        if getattr(args, name) is not None:
            sizes[name] = getattr(args, name)
    # They are loaded when the cache has its memory already.
    may_load_more = args.lora_dir is not None and args.max_loras is not None
    num_reserved = args.max_loras if may_load_more else len(adapters)
    if num_reserved:
        sizes["reserved_loras"] = num_reserved
    # Requests are counted at the door; a second limit behind it would only confuse.
    max_pending = settings.max_pending_requests * settings.max_choices

    def start() -> ServiceEngine:
        parts = share_out(args, args.replicas or 1, os.environ)
        # Here and not only in the engine's process: a model that must first be fetched shows its progress,
        # and a folder that holds none costs no process.
        folder = resolve_model(model)
        read_config(folder)
        tokenizer = load_tokenizer(folder)
        engines: list[AsyncEngine] = []
        engine: ServiceEngine
        try:
            # One after another: each takes a share of the memory that is then free.
            for part in parts:
                load = partial(load_replica, model, part, len(parts), **sizes)
                engines.append(AsyncEngine.spawn(load, tokenizer, max_pending=max_pending))
            engine = engines[0] if len(engines) == 1 else ReplicaSet(engines)
            if adapters:
                name = settings.served_model_name or engine.llm.name
                asyncio.run(load_adapters(engine, adapters, name))
        except BaseException:
            for started in engines:
                started.close()
            raise
        return engine

    return start

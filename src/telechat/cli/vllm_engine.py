"""`telechat serve --engine vllm`: the model as a Llama folder, handed over to an installed vLLM.

vLLM is a program of its own here: nothing of it is imported. An option that it has no equal of is refused.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from telechat.cli.model_source import model_of
from telechat.cli.parser import CommandParser
from telechat.errors import UsageError

PROGRAM = "vllm"
RAY_VARIABLE = "RAY_ADDRESS"
VLLM_KEY_VARIABLE = "VLLM_API_KEY"
# Our option -> vLLM's.
_OPTIONS = {
    "host": "--host",
    "port": "--port",
    "max_model_len": "--max-model-len",
    "max_batch_size": "--max-num-seqs",
    "max_batch_tokens": "--max-num-batched-tokens",
    "block_size": "--block-size",
    "tp": "--tensor-parallel-size",
    "tls_cert": "--ssl-certfile",
    "tls_key": "--ssl-keyfile",
}
_DEFAULTS: dict[str, Any] = {"host": "127.0.0.1", "port": 8070}
_OURS = (
    "engine", "model", "served_model_name", "dtype", "config", "tokenizer", "strategy", "register_path",
    "trust_remote_code", "debug", "log_level", "api_key", "allow_anonymous",
)  # fmt: skip


def serve_with_vllm(args: argparse.Namespace, add_arguments: Callable[[CommandParser], None]) -> int:
    """Export the model, unless it was exported before, and run vLLM until it ends; returns its exit code.

    Args:
        args: the options of `telechat serve`.
        add_arguments: what declares them; their defaults tell which were given.

    Raises:
        UsageError: vLLM is not installed, or an option has no equal there.
        ConfigError: as `with_key`.
        CheckpointError: the model is no Llama.
    """
    _refuse_others(args, add_arguments)
    if shutil.which(PROGRAM) is None:
        raise UsageError("--engine vllm needs vLLM, which is not installed.", hint="Run: pip install vllm")
    environment = with_key(args, os.environ)
    folder, name = exported(args)
    return subprocess.run(command(args, folder, name), env=environment).returncode


def with_key(args: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, str]:
    """vLLM's environment, with the key that our own service would ask clients for.

    Not on its command line, which every user of the machine can read.

    Raises:
        ConfigError: a key that cannot be one, or a key beside --allow-anonymous.
    """
    from telechat.cli.serve import given_keys
    from telechat.serve.keys import resolve_keys
    from telechat.serve.settings import ServeSettings

    keys = resolve_keys(
        ServeSettings(
            host=args.host or _DEFAULTS["host"],
            api_keys=given_keys(args.api_key),
            allow_anonymous=args.allow_anonymous,
        )
    )
    return {**environment, **({VLLM_KEY_VARIABLE: keys[0]} if keys else {})}


def command(args: argparse.Namespace, folder: Path, name: str) -> list[str]:
    """vLLM's command line."""
    words = [PROGRAM, "serve", str(folder), "--served-model-name", args.served_model_name or name]
    for ours, theirs in _OPTIONS.items():
        value = getattr(args, ours)
        value = _DEFAULTS.get(ours) if value is None else value
        if value is not None:
            words += [theirs, str(value)]
    if args.dtype != "auto":
        words += ["--dtype", args.dtype]
    if os.environ.get(RAY_VARIABLE):  # several machines that run Ray together
        words += ["--distributed-executor-backend", "ray"]
    return words


def exported(args: argparse.Namespace) -> tuple[Path, str]:
    """(the Llama folder, name of the model); made once, and again when the model's files have changed."""
    from telechat.checkpoint.formats.llama import plan_llama
    from telechat.checkpoint.formats.opening import open_model_folder
    from telechat.checkpoint.formats.writing import fingerprint, write_target
    from telechat.checkpoint.hub import cache_folder, resolve_model
    from telechat.cli.checkpoint_options import ByteProgress

    model = model_of(args)
    source = resolve_model(model)
    checkpoint = open_model_folder(source)
    plan = plan_llama(checkpoint, length=args.max_model_len)
    target = cache_folder() / "vllm" / fingerprint(plan)[:16] / source.resolve().name
    if not target.is_dir():
        write_target(target, plan, ByteProgress())
    return target, model if not Path(model).exists() else source.resolve().name


def _refuse_others(args: argparse.Namespace, add_arguments: Callable[[CommandParser], None]) -> None:
    parser = CommandParser("telechat serve", summary="", examples=())
    add_arguments(parser)
    defaults = parser.parse([])
    for name, value in vars(args).items():
        if name not in _OPTIONS and name not in _OURS and value != getattr(defaults, name, value):
            raise UsageError(
                f"--{name.replace('_', '-')} has no meaning with --engine vllm.",
                hint=f"Leave it out, or run {PROGRAM} serve yourself on what telechat export vllm prepares.",
            )

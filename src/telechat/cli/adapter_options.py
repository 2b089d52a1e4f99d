"""Options that name low-rank adapters, and what they become.

Knows the form of an option; whether a folder holds an adapter is found out when it is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telechat.cli.parser import CommandParser, positive_int
from telechat.errors import CheckpointError, ConfigError, UsageError

if TYPE_CHECKING:
    from telechat.serve.contract import ServiceEngine


def add_adapter_options(parser: CommandParser) -> argparse._ArgumentGroup:
    """Add the options that say which adapters to load; returns their group."""
    group = parser.add_argument_group("LoRA adapters")
    add_lora(group)
    group.add_argument(
        "--max-lora-rank", type=positive_int, metavar="R", help="highest rank of an adapter (default: 64)"
    )
    return group


def add_lora(parser: argparse._ActionsContainer) -> None:
    """Add `--lora` alone."""
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="load the adapter in this folder (PEFT's format) under a name; may be repeated",
    )


def adapter_folders(args: argparse.Namespace) -> dict[str, str]:
    """Name -> folder of the adapters asked for. Without `NAME=`, the folder's name is the adapter's.

    Raises:
        UsageError: a name or a folder is empty, or a name is given twice.
    """
    folders: dict[str, str] = {}
    for text in args.lora:
        name, separator, path = text.partition("=")
        if not separator:
            name, path = Path(text).resolve().name, text
        if not name or not path:
            raise UsageError(f"--lora {text!r} is not NAME=PATH.", hint="Example: --lora poet=runs/poet")
        if name in folders:
            raise UsageError(f"--lora names {name!r} twice.", hint="Give each adapter a name of its own.")
        folders[name] = path
    return folders


def the_adapter(args: argparse.Namespace) -> str | None:
    """The one adapter that answers everything; None without `--lora`.

    Raises:
        UsageError: several are named.
    """
    names = list(adapter_folders(args))
    if len(names) > 1:
        raise UsageError(
            f"{len(names)} adapters are named, but answers come from one.",
            hint="Give --lora once; `telechat serve` and batch files choose by name.",
        )
    return names[0] if names else None


def adapter_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `LLM` for all adapters asked for, loaded with the model."""
    settings = rank_limit(args)
    folders = adapter_folders(args)
    if folders:
        settings |= {"adapters": folders, "max_loras": len(folders)}
    return settings


def rank_limit(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `LLM` that limit adapters."""
    return {} if args.max_lora_rank is None else {"max_lora_rank": args.max_lora_rank}


async def load_adapters(engine: ServiceEngine, folders: Mapping[str, str], model_name: str) -> None:
    """Load adapters into an engine that has just started.

    They are not part of what starts its process again: by then, requests may have unloaded some.

    Raises:
        ConfigError: one of them cannot be used; says which.
    """
    for name, folder in folders.items():
        if name == model_name:
            raise ConfigError(f"The adapter {name!r} has the name of the model.", hint="Choose another name.")
        try:
            await engine.load_adapter(name, folder)
        except (CheckpointError, ConfigError) as error:
            raise ConfigError(f"Adapter {name!r}: {error.message}", hint=error.hint) from error

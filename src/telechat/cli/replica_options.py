"""From the options of one model to those of several replicas of it: devices, ports and threads shared out.

Knows options and devices; nothing of what a replica does.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from telechat.cli.model_options import load_llm
from telechat.cli.rank_options import rank_settings
from telechat.errors import UsageError

if TYPE_CHECKING:
    from telechat.engine import LLM


def share_out(
    args: argparse.Namespace, num_replicas: int, environment: Mapping[str, str]
) -> list[argparse.Namespace]:
    """The options of each replica: a part of the devices each, and a port of its own for its ranks.

    Args:
        args: parsed options of `add_loading_options`.
        environment: where devices and ports may be named too.

    Raises:
        UsageError: the devices cannot be shared evenly.
    """
    if num_replicas == 1:
        return [args]
    port = rank_settings(args, environment).get("master_port")
    parts = _device_parts(args, num_replicas, environment)
    return [
        argparse.Namespace(
            **{
                **vars(args),
                "devices": None if parts is None else parts[number],
                "master_port": None if port is None else port + number,
            }
        )
        for number in range(num_replicas)
    ]


def _device_parts(
    args: argparse.Namespace, num_replicas: int, environment: Mapping[str, str]
) -> list[str] | None:
    """Device lists, one per replica; None on the CPU, which all share."""
    from telechat.device import CPU, VISIBLE_DEVICES_VARIABLES, device_count, resolve_device

    device = resolve_device(args.device)
    if device.type == CPU.type:
        return None
    if ":" in args.device:
        raise UsageError(
            f"--device {args.device} is one device; {num_replicas} replicas need one each.",
            hint="Name the type only, and choose the devices with --devices.",
        )
    listed = args.devices or next(
        (environment[name] for name in VISIBLE_DEVICES_VARIABLES if environment.get(name)), None
    )
    names = listed.split(",") if listed else [str(number) for number in range(device_count())]
    size, rest = divmod(len(names), num_replicas)
    if rest or not size:
        raise UsageError(
            f"{len(names)} devices cannot be shared evenly by {num_replicas} replicas.",
            hint="Choose the devices with --devices, or another number with --replicas.",
        )
    return [",".join(names[start : start + size]) for start in range(0, len(names), size)]


def load_replica(model: str, args: argparse.Namespace, num_replicas: int, **settings: Any) -> LLM:
    """Load the model in the process of one of several replicas, with its part of the threads."""
    if num_replicas > 1:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // num_replicas))
    return load_llm(model, args, **settings)

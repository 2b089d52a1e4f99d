"""Options that spread a model over processes or devices, and what they become.

Each is taken from its flag, else from the variable that the original scripts use, else from `LLM`'s default.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from telechat.cli.parser import CommandParser, port_number, positive_int
from telechat.errors import UsageError

TP_VARIABLE = "TP_WORLD_SIZE"
PORT_VARIABLE = "MASTER_PORT"
BINDING_VARIABLE = "BIND_CPU"
_DEVICE_LIST = re.compile(r"\d+(,\d+)*")
_Value = TypeVar("_Value")


def add_rank_options(parser: CommandParser) -> None:
    """Add the options that spread a model over several ranks."""
    group = parser.add_argument_group("several ranks", "processes on a CPU; elsewhere one device for each")
    group.add_argument(
        "--tp",
        type=positive_int,
        metavar="N",
        help=f"ranks that share each layer; divides the attention heads (default: ${TP_VARIABLE}, else 1)",
    )
    group.add_argument(
        "--ep", type=positive_int, metavar="N", help="ranks that share the experts of a mixture (default: 1)"
    )
    group.add_argument(
        "--master-port",
        type=port_number,
        metavar="PORT",
        help=f"where the ranks of this machine meet (default: ${PORT_VARIABLE}, else any free port)",
    )
    group.add_argument(
        "--devices",
        type=device_list,
        metavar="0,1",
        help="accelerators to use (default: $CUDA_VISIBLE_DEVICES or $ASCEND_RT_VISIBLE_DEVICES, else all)",
    )
    group.add_argument(
        "--bind-cpu",
        action=argparse.BooleanOptionalAction,
        help="keep each of several ranks to the cores of a NUMA node, if there are several nodes "
        f"(default: ${BINDING_VARIABLE}, else yes)",
    )


def device_list(text: str) -> str:
    """An argparse type: device numbers joined by commas."""
    if not _DEVICE_LIST.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0 or 0,1")
    if len(set(text.split(","))) < len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} names a device twice")
    return text


def rank_settings(args: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, Any]:
    """Keywords of `LLM` by flag, then environment; those that neither gives are left out.

    Raises:
        UsageError: a variable that cannot be what it says.
    """
    found: dict[str, Any] = {
        "tp": args.tp or _from(environment, TP_VARIABLE, positive_int),
        "ep": args.ep,
        "master_port": args.master_port or _from(environment, PORT_VARIABLE, port_number),
        "bind_cpu": args.bind_cpu,
    }
    if args.bind_cpu is None:
        found["bind_cpu"] = _from(environment, BINDING_VARIABLE, _switch)
    return {name: value for name, value in found.items() if value is not None}


def use_devices(args: argparse.Namespace) -> None:
    """Let this process and the ranks it starts see the chosen devices only; call it before one is used.

    Raises:
        UsageError: the model is to run where there is nothing to choose from.
    """
    if args.devices is None:
        return
    from telechat.device import CPU, VISIBLE_DEVICES_VARIABLES, resolve_device

    for variable in VISIBLE_DEVICES_VARIABLES:
        os.environ[variable] = args.devices
    if resolve_device(args.device) == CPU:
        raise UsageError(
            f"--devices {args.devices} chooses accelerators, but the model would run on the CPU.",
            hint="Leave --devices out; --tp alone starts processes on the CPU.",
        )


def _from(environment: Mapping[str, str], variable: str, parse: Callable[[str], _Value]) -> _Value | None:
    text = environment.get(variable, "").strip()
    if not text:
        return None
    try:
        return parse(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(
            f"The environment variable {variable}: {error}.", hint="Correct or unset it."
        ) from None


def _switch(text: str) -> bool:
    known = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 1 nor 0")
    return known[text.lower()]

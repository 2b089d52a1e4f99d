"""`telechat launch`: run a verb in several processes, on one machine or many; a thin front of torchrun."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

from telechat.cli.parser import CommandParser, non_negative_int, port_number, positive_int
from telechat.errors import ConfigError, UsageError

EXAMPLES = (
    "telechat launch --nproc-per-node 2 -- train --config recipes/sft.yaml --schedule.total-steps 2",
    "telechat launch --nproc-per-node 2 -- doctor",
)

log = logging.getLogger(__name__)
LOG_LEVEL = "info"

# Variables of the original launch scripts that mean nothing here.
_WITHOUT_EFFECT = (
    *("ENABLE_CELL_REUSE", "MS_DEV_SIDE_EFFECT_LOAD_ELIM", "MS_MEMORY_POOL_RECYCLE", "GE_NOT_CUT"),
    "RANK_TABLE_FILE",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat launch`."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="-- VERB ...",
        help="the command that every process runs, after two dashes",
    )
    group = parser.add_argument_group("machines", "the same command on each, with its own --node-rank")
    group.add_argument("--nnodes", type=positive_int, metavar="N", help="machines (default: 1)")
    group.add_argument(
        "--nproc-per-node",
        type=positive_int,
        metavar="N",
        help="processes on each machine (default: one for each accelerator, or 1)",
    )
    group.add_argument(
        "--node-rank", type=non_negative_int, metavar="N", help="this machine's number, from 0"
    )
    group.add_argument("--master-addr", metavar="HOST", help="address of machine 0")
    group.add_argument(
        "--master-port",
        type=port_number,
        metavar="PORT",
        help="port there (default: any free one, for one machine)",
    )
    group.add_argument(
        "--timeout",
        type=positive_int,
        metavar="SECONDS",
        help="how long a machine waits for the others (default: 900)",
    )
    group.add_argument(
        "--hostfile",
        type=Path,
        metavar="FILE",
        help="DeepSpeed's list of machines, lines of NAME slots=N; other options win over it",
    )
    group.add_argument(
        "--msrun",
        metavar="WORDS",
        help="what follows the command of msrun_launcher.sh, in quotes; other options win over it",
    )
    parser.add_argument(
        "--log-dir",
        type=Path,
        metavar="DIR",
        help="folder for worker_<rank>.log, one for each process (default: runs/launch)",
    )
    parser.add_argument(
        "--max-restarts",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="times to start all processes again when one fails; a training run resumes (default: 0)",
    )


def run(args: argparse.Namespace) -> int:
    """Start the processes and wait for them."""
    from telechat.cli.main import find_verb

    if not args.words:
        raise UsageError(
            "There is no command to launch.", hint="Give it after two dashes: -- train --config FILE."
        )
    verb = find_verb(args.words)
    if verb is not None and verb.words == ("launch",):
        raise UsageError("launch cannot launch itself.")
    _check_environment()
    # Imported here: torch takes seconds, and mistakes in the options should not.
    from telechat.train.distributed.machines import Machines

    machines = Machines(**machine_settings(args))
    from telechat.train.distributed.launcher import launch

    launch(machines, args.words, max_restarts=args.max_restarts)
    return 0


def machine_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of `Machines`: from the hostfile or msrun's words, over which options win."""
    from telechat.train.distributed.machines import from_hostfile, from_msrun

    if args.msrun is not None and args.hostfile is not None:
        raise UsageError("--msrun and --hostfile both name the machines.", hint="Give one of them.")
    found: dict[str, Any] = {}
    if args.msrun is not None:
        found = from_msrun(args.msrun)
    elif args.hostfile is not None:
        found = from_hostfile(args.hostfile)
    names = ("nnodes", "nproc_per_node", "node_rank", "master_addr", "master_port", "log_dir")
    given = {name: getattr(args, name) for name in names}
    given["timeout_s"] = args.timeout
    found |= {name: value for name, value in given.items() if value is not None}
    unknown_here = found.pop("unknown_here", None)
    if unknown_here is not None and "node_rank" not in found:
        raise ConfigError(
            f"{args.hostfile} does not name this machine, which knows itself as {unknown_here}.",
            hint="Give its number in the file: --node-rank N.",
        )
    if "nproc_per_node" not in found:
        from telechat.device import device_count

        found["nproc_per_node"] = device_count() or 1
    return found


def _check_environment() -> None:
    """Look at the variables of the original launch scripts.

    Raises:
        ConfigError: storage that all machines should share is not there.
    """
    for name in _WITHOUT_EFFECT:
        if name in os.environ:
            log.info("%s is set; it has no effect here", name)
    for path in filter(None, os.environ.get("SHARED_PATHS", "").split(",")):
        if not Path(path).is_dir():
            raise ConfigError(
                f"SHARED_PATHS names {path}, which is no folder on this machine.",
                hint="Mount the shared storage here, or unset the variable.",
            )

"""Starting the processes of a launch by torch's elastic agent, which is what torchrun runs.

Each process writes a log of its own; that of the first also goes to the console, where it shows the loss of
the whole run. When one ends wrongly the agent ends the others. Knows nothing of what the processes do.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, LogsDest, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from telechat.errors import RankError
from telechat.train.distributed.machines import Machines

log = logging.getLogger(__name__)

WORKER = "telechat.cli.launch_worker"
_LAST_LINES = 15
_MONITOR_S = 0.5


class WorkerLogs(DefaultLogsSpecs):
    """`worker_<rank>.log` for each process; the logs of an attempt before a restart keep its number.

    Args:
        folder: where they go.
        shows_first: whether the console shows what rank 0 writes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Where the output of each local process goes."""
        attempt = int(next(iter(envs.values())).get("TORCHELASTIC_RESTART_COUNT", "0"))
        paths = {local_rank: worker_log(self.folder, env["RANK"]) for local_rank, env in envs.items()}
        if attempt:
            for path in paths.values():
                if path.exists():
                    os.replace(path, path.with_suffix(f".attempt{attempt - 1}.log"))
        stdouts = {local_rank: str(path) for local_rank, path in paths.items()}
        shown = {local_rank: path for local_rank, path in stdouts.items() if envs[local_rank]["RANK"] == "0"}
        errors = {local_rank: str(path.with_suffix(".error.json")) for local_rank, path in paths.items()}
        # A process joins its stderr to its stdout itself; what Python says before goes to the same file.
        return LogsDest(stdouts=stdouts, stderrs=dict(stdouts), tee_stdouts=shown, error_files=errors)


def worker_log(folder: Path, rank: int | str) -> Path:
    """The log of a process."""
    return folder / f"worker_{rank}.log"


def launch(machines: Machines, command: Sequence[str], *, max_restarts: int) -> None:
    """Run `telechat COMMAND` in every process of this machine; returns when all have ended well.

    Raises:
        RankError: one ended otherwise; its last lines are on stderr.
        KeyboardInterrupt: this process was asked to end, and has ended the others.
    """
    machines.log_dir.mkdir(parents=True, exist_ok=True)
    port = machines.master_port or _free_port()
    # Otherwise each would take all cores.
    share = max(1, (os.cpu_count() or 1) // machines.nproc_per_node)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    config = LaunchConfig(
        min_nodes=machines.nnodes,
        max_nodes=machines.nnodes,
        nproc_per_node=machines.nproc_per_node,
        run_id=f"telechat-{port}",
        rdzv_backend="static",
        rdzv_endpoint=f"{machines.master_addr}:{port}",
        rdzv_configs={"rank": machines.node_rank, "timeout": machines.timeout_s},
        max_restarts=max_restarts,
        monitor_interval=_MONITOR_S,
        log_line_prefix_template="${role_name}",  # which is empty
        role="",
        logs_specs=WorkerLogs(machines.log_dir),
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", WORKER, *command)
    except ChildFailedError as error:
        raise _first_failure(error, machines) from None
    except SignalException as error:
        raise KeyboardInterrupt from error


def _first_failure(error: ChildFailedError, machines: Machines) -> RankError:
    """What to say of the process that failed first; shows the end of its log."""
    rank, failure = error.get_first_failure()
    path = worker_log(machines.log_dir, rank)
    lines = last_lines(path)
    if lines:
        print(f"the last lines of {path}:", *lines, sep="\n  ", file=sys.stderr)
    how = f"exit code {failure.exitcode}" if failure.exitcode >= 0 else f"signal {-failure.exitcode}"
    world_size = machines.nnodes * machines.nproc_per_node
    return RankError(
        f"Process {rank} of {world_size} ended with {how}; the others were ended.",
        hint=f"Its log is {path}. With --max-restarts N all are started again, and a run resumes.",
    )


def last_lines(path: Path, count: int = _LAST_LINES) -> list[str]:
    """The last lines of a log, without what a terminal would have written over."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip().rpartition("\r")[2] for line in text.splitlines()]
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in lines if line][-count:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

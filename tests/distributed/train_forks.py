"""Ranks of a training test as forks of one process, which has imported torch once for all of them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def in_processes(size: int, work: Callable[[], object], logs: Path, timeout_s: float) -> None:
    """Do the same in `size` forks of this process, and wait for them.

    Args:
        work: finds RANK, WORLD_SIZE and where to meet in the environment.
        logs: a folder for what each rank writes.
        timeout_s: the longest it may take.

    Raises:
        AssertionError: a process failed or took too long; holds what it wrote.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    running = {}
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            _be_rank(rank, size, port, work, logs / f"rank-{rank}.log")
        running[pid] = rank
    deadline = time.monotonic() + timeout_s
    failed = None
    while running and failed is None:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            rank = running.pop(pid)
            failed = rank if status else None
        elif time.monotonic() > deadline:
            failed = min(running.values())
        else:
            time.sleep(0.02)
    for pid in running:  # one that fails leaves the others waiting
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if failed is not None:
        shown = (logs / f"rank-{failed}.log").read_text(encoding="utf-8")[-3000:]
        raise AssertionError(f"{logs.name}: rank {failed} of {size} failed or took too long:\n{shown}")


def _be_rank(rank: int, size: int, port: int, work: Callable[[], object], log: Path) -> None:
    """The life of a forked process; never returns."""
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ |= {name: str(number) for name, number in numbers.items()}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

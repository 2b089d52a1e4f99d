"""Which machines and processes a launch has: from options, a DeepSpeed hostfile, or msrun's positions.

Reads no more than the hostfile and this machine's names. Knows nothing of processes.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telechat.errors import ConfigError, UsageError

DEFAULT_PORT = 29500
_HOST = re.compile(r"(\S+)\s+slots\s*=\s*(\d+)")


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Where the processes of a launch are.

    Attributes:
        nnodes: machines.
        nproc_per_node: processes on each.
        node_rank: this machine's number, from 0.
        master_addr, master_port: where all of them meet: the machine with number 0. Port 0 is any free one,
            for a single machine.
        timeout_s: how long a machine waits for the others.
        log_dir: receives a log for each process of this machine.
    """

    nnodes: int = 1
    nproc_per_node: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    timeout_s: int = 900
    log_dir: Path = Path("runs/launch")

    def __post_init__(self) -> None:
        if not 0 <= self.node_rank < self.nnodes:
            raise UsageError(
                f"--node-rank is {self.node_rank}; with {self.nnodes} machines it goes from 0 to "
                f"{self.nnodes - 1}."
            )
        if self.nnodes > 1 and not self.master_port:
            raise UsageError(
                f"{self.nnodes} machines need a port to meet at.", hint=f"Give --master-port {DEFAULT_PORT}."
            )
        if self.nnodes > 1 and self.node_rank and self.master_addr in ("127.0.0.1", "localhost"):
            raise UsageError(
                f"Machine {self.node_rank} of {self.nnodes} cannot meet the others at {self.master_addr}, "
                "which is itself.",
                hint="Give --master-addr: the address of machine 0.",
            )


def from_msrun(text: str) -> dict[str, Any]:
    """Fields of `Machines` from the words that follow the command of msrun_launcher.sh.

    1 word: processes, on this machine. 5: processes, port, log folder, join, timeout, on this machine. 8:
    processes, processes on each machine, address, port, this machine's number, log folder, join, timeout.

    Raises:
        UsageError: another count of words, or a word that is no number.
    """
    words = shlex.split(text)
    if len(words) == 1:
        words = [words[0], "8118", "output/msrun_log", "False", "7200"]
    if len(words) == 5:
        words = [words[0], words[0], "127.0.0.1", words[1], "0", *words[2:]]
    if len(words) != 8:
        raise UsageError(
            f"--msrun {text!r} has {len(words)} words; msrun takes 1, 5 or 8.",
            hint="For example: --msrun '16 8 192.168.1.1 8118 0 output/msrun_log False 300'.",
        )
    names = ("WORKER_NUM", "LOCAL_WORKER", "MASTER_PORT", "NODE_RANK", "CLUSTER_TIME_OUT")
    texts = (words[0], words[1], words[3], words[4], words[7])
    for name, word in zip(names, texts, strict=True):
        if not word.isdigit():
            raise UsageError(f"--msrun: {name} is {word!r}; it must be a whole number.")
    total, local, port, node_rank, timeout = map(int, texts)
    if not local or total % local:
        raise UsageError(f"--msrun: {total} processes do not divide into machines of {local}.")
    return {
        "nnodes": total // local,
        "nproc_per_node": local,
        "node_rank": node_rank,
        "master_addr": words[2],
        "master_port": port,
        "timeout_s": timeout,
        "log_dir": Path(words[5]),
    }


def from_hostfile(path: Path, *, names: Callable[[], set[str]] | None = None) -> dict[str, Any]:
    """Fields of `Machines` from a DeepSpeed hostfile: lines of `NAME slots=N`; the first is machine 0.

    This machine's number is left out where the file does not name it.

    Args:
        names: gives this machine's names and addresses.

    Raises:
        ConfigError: the file cannot be read, a line is malformed, or the machines differ in processes.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the hostfile {path}: {error}.") from error
    hosts: list[tuple[str, int]] = []
    for number, line in enumerate(lines, 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        match = _HOST.fullmatch(content)
        if match is None:
            raise ConfigError(f"{path} line {number} is {content!r}; expected NAME slots=N.")
        hosts.append((match[1], int(match[2])))
    slots = {count for _, count in hosts}
    if len(slots) != 1 or not min(slots):
        raise ConfigError(
            f"{path} gives machines of {sorted(slots) or 'no'} slots; all must have as many, at least 1."
        )
    found: dict[str, Any] = {
        "nnodes": len(hosts),
        "nproc_per_node": slots.pop(),
        "master_addr": hosts[0][0],
        "master_port": DEFAULT_PORT,
    }
    own = (names or own_names)()
    number_here = next((number for number, (name, _) in enumerate(hosts) if name in own), None)
    if number_here is not None:
        found["node_rank"] = number_here
    elif len(hosts) > 1:
        found["unknown_here"] = ", ".join(sorted(own))
    return found


def own_names() -> set[str]:
    """This machine's names and addresses, as far as it can tell."""
    name = socket.gethostname()
    names = {"localhost", "127.0.0.1", name, name.partition(".")[0], socket.getfqdn()}
    with contextlib.suppress(OSError):  # a name that nothing resolves; the others may do
        names.update(str(entry[4][0]) for entry in socket.getaddrinfo(name, None))
    return names

"""Which processors a rank computes on: cores beside its memory, and its share of the threads.

On a machine with several NUMA nodes a rank keeps to the cores of one (or to its share of them, or to several
nodes when there are fewer ranks than nodes); elsewhere the scheduler places threads as well as we could. Asks
the operating system; knows nothing of models.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

log = logging.getLogger(__name__)

_NODES = Path("/sys/devices/system/node")


def parse_cpu_list(text: str) -> list[int]:
    """The numbers of a kernel list such as "0-3,8"."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def numa_nodes(folder: Path = _NODES) -> list[list[int]]:
    """The processors of each NUMA node that has any; empty where the system does not say."""
    files = sorted(folder.glob("node[0-9]*/cpulist"), key=lambda file: int(file.parent.name[4:]))
    nodes = (parse_cpu_list(file.read_text(encoding="ascii")) for file in files)
    return [node for node in nodes if node]


def cpus_of_rank(
    nodes: Sequence[Sequence[int]], allowed: set[int], rank: int, world_size: int
) -> set[int] | None:
    """The processors a rank should keep to; None where binding brings nothing (fewer than two nodes).

    Args:
        nodes: processors by NUMA node.
        allowed: those that this process may use at all.
    """
    usable = [kept for node in nodes if (kept := [cpu for cpu in node if cpu in allowed])]
    if len(usable) < 2:
        return None
    if world_size <= len(usable):
        first, end = (index * len(usable) // world_size for index in (rank, rank + 1))
        return {cpu for node in usable[first:end] for cpu in node}
    number = rank * len(usable) // world_size
    sharers = [other for other in range(world_size) if other * len(usable) // world_size == number]
    node, place = usable[number], sharers.index(rank)
    first, end = (index * len(node) // len(sharers) for index in (place, place + 1))
    return set(node[first:end]) or set(node)


class Binding:
    """A rank's threads, and its cores where `bind` is set and there are NUMA nodes; undone by `undo`.

    Threads that exist already keep their cores: bind before a model is loaded.

    Args:
        num_threads: what torch and the kernels compute with in this rank.
    """

    def __init__(self, rank: int, world_size: int, *, num_threads: int, bind: bool) -> None:
        self._previous_threads = torch.get_num_threads()
        self._previous_cpus: set[int] | None = None
        torch.set_num_threads(num_threads)
        if bind and hasattr(os, "sched_setaffinity"):
            allowed = os.sched_getaffinity(0)
            cpus = cpus_of_rank(numa_nodes(), allowed, rank, world_size)
            if cpus is not None:
                os.sched_setaffinity(0, cpus)
                self._previous_cpus = allowed
                log.info("rank %d computes on processors %s", rank, sorted(cpus))

    def undo(self) -> None:
        """Give this thread its cores and torch its threads back."""
        torch.set_num_threads(self._previous_threads)
        if self._previous_cpus is not None:
            os.sched_setaffinity(0, self._previous_cpus)
            self._previous_cpus = None


def threads_per_rank(world_size: int) -> int:
    """An equal share of the threads that this process computes with."""
    return max(1, torch.get_num_threads() // world_size)

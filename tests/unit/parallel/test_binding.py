"""Ranks get the cores of NUMA nodes, or a share of one; without nodes nothing is bound."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from telechat.parallel import binding
from telechat.parallel.binding import Binding, cpus_of_rank, numa_nodes, parse_cpu_list

TWO_NODES = [[0, 1, 2, 3], [4, 5, 6, 7]]
ALL = set(range(8))


def test_lists_of_processors() -> None:
    assert parse_cpu_list("0-3,8,10-11\n") == [0, 1, 2, 3, 8, 10, 11]
    assert parse_cpu_list("\n") == []


def test_nodes_are_read_from_the_system(tmp_path: Path) -> None:
    for name, cpus in (("node0", "0-1"), ("node1", ""), ("node10", "4"), ("node2", "2-3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpulist").write_text(cpus + "\n")
    assert numa_nodes(tmp_path) == [[0, 1], [2, 3], [4]]
    assert numa_nodes(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("world_size", "expected"),
    [
        (1, [ALL]),
        (2, [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        (4, [{0, 1}, {2, 3}, {4, 5}, {6, 7}]),
        (8, [{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}]),
    ],
)
def test_ranks_share_the_nodes(world_size: int, expected: list[set[int]]) -> None:
    assert [cpus_of_rank(TWO_NODES, ALL, rank, world_size) for rank in range(world_size)] == expected


def test_only_allowed_processors_and_never_none() -> None:
    assert cpus_of_rank(TWO_NODES, {1, 5, 6}, 1, 2) == {5, 6}
    # Three ranks on a node with one core each left share it rather than have none.
    assert all(cpus_of_rank([[0], [1]], {0, 1}, rank, 6) for rank in range(6))


@pytest.mark.parametrize("nodes", [[], [[0, 1, 2, 3, 4, 5, 6, 7]], [*TWO_NODES[:1], [99]]])
def test_without_several_nodes_nothing_is_bound(nodes: list[list[int]]) -> None:
    assert cpus_of_rank(nodes, ALL, 0, 2) is None


def test_binding_and_undoing(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[set[int]] = []
    monkeypatch.setattr(binding, "numa_nodes", lambda: TWO_NODES)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: ALL, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: bound.append(cpus), raising=False)
    before = torch.get_num_threads()
    mine = Binding(1, 2, num_threads=1, bind=True)
    assert bound == [{4, 5, 6, 7}] and torch.get_num_threads() == 1
    mine.undo()
    assert bound == [{4, 5, 6, 7}, ALL] and torch.get_num_threads() == before
    Binding(1, 2, num_threads=before, bind=False)
    assert len(bound) == 2

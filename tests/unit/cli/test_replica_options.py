"""How replicas share devices, ports and threads."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch

import telechat.cli.replica_options
import telechat.device
from telechat.cli.model_options import add_loading_options
from telechat.cli.parser import CommandParser
from telechat.cli.replica_options import load_replica, share_out
from telechat.errors import UsageError


def options(words: str = "") -> argparse.Namespace:
    parser = CommandParser("telechat serve", summary="x", examples=[])
    add_loading_options(parser)
    return parser.parse(words.split())


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four."""
    place = torch.device("cuda", 0)
    monkeypatch.setattr(telechat.device, "resolve_device", lambda name: place)
    monkeypatch.setattr(telechat.device, "device_count", lambda: 4)


def devices(words: str, count: int, environment: dict[str, str] | None = None) -> list[Any]:
    return [part.devices for part in share_out(options(words), count, environment or {})]


def test_one_replica_keeps_its_options() -> None:
    args = options("--devices 0,1")
    assert share_out(args, 1, {}) == [args]


@pytest.mark.usefixtures("accelerators")
def test_devices_are_shared_evenly() -> None:
    assert devices("", 2) == ["0,1", "2,3"]
    assert devices("", 4) == ["0", "1", "2", "3"]
    assert devices("--devices 5,6,7,9", 2) == ["5,6", "7,9"]
    assert devices("", 2, {"CUDA_VISIBLE_DEVICES": "3,1"}) == ["3", "1"]
    assert devices("--devices 0,2", 2, {"CUDA_VISIBLE_DEVICES": "3,1"}) == ["0", "2"]


@pytest.mark.usefixtures("accelerators")
@pytest.mark.parametrize(("words", "count"), [("", 3), ("", 8), ("--devices 0", 2), ("--device cuda:1", 2)])
def test_devices_that_cannot_be_shared(words: str, count: int) -> None:
    with pytest.raises(UsageError, match="replicas"):
        share_out(options(words), count, {})


def test_the_cpu_is_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices("--device cpu", 3) == [None, None, None]
    chosen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(telechat.cli.replica_options, "load_llm", lambda model, args, **sizes: (model, sizes))
    for count in (1, 3, 16):
        assert load_replica("demo", options(), count, max_batch_size=2) == ("demo", {"max_batch_size": 2})
    assert chosen == [2, 1]


def test_ranks_of_each_replica_meet_at_a_port_of_their_own() -> None:
    parts = share_out(options("--device cpu --master-port 6000"), 3, {})
    assert [part.master_port for part in parts] == [6000, 6001, 6002]
    parts = share_out(options("--device cpu"), 2, {"MASTER_PORT": "7000"})
    assert [part.master_port for part in parts] == [7000, 7001]
    assert [part.master_port for part in share_out(options("--device cpu"), 2, {})] == [None, None]

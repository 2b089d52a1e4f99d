"""One rank of two whose device is said to be an accelerator; gloo stands in for its library. A program."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist

from telechat.errors import RankError
from telechat.parallel.groups import Groups
from telechat.parallel.sharding import Layout

ACCELERATOR = torch.device("meta", 0)


def main(rank: int, port: int) -> None:
    """Meet the other rank, add up, collect, refuse a second engine, part; rank 0 prints the port first."""
    seen: dict[str, Any] = {}
    initialise = dist.init_process_group

    def stand_in(**arguments: Any) -> None:
        seen.update(arguments)
        initialise("gloo", **{name: value for name, value in arguments.items() if name != "device_id"})

    dist.init_process_group = stand_in
    groups = Groups(Layout(tp=2, ep=2), rank)
    if rank == 0:
        port = groups.listen(0)
        print(port, flush=True)
    groups.connect(port, ACCELERATOR)
    # The library is the device's own: none is named.
    assert seen["device_id"] == ACCELERATOR and "backend" not in seen
    assert groups.tensor.add_up(torch.tensor([1.0, rank])).tolist() == [2.0, 1.0]
    assert groups.world.add_up(torch.tensor([2.0])).tolist() == [4.0]
    parts = groups.tensor.collect(torch.tensor([float(rank)]))
    assert [part.item() for part in parts] == ([0.0, 1.0] if rank == 0 else [])
    try:
        Groups(Layout(tp=2), rank)._connect_accelerators(ACCELERATOR)
        raise AssertionError("a second group was made")
    except RankError as error:
        assert "already uses torch.distributed" in error.message
    groups.close(in_order=True)
    assert not dist.is_initialized()
    print("done", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

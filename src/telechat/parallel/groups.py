"""The sums and collections that ranks make together.

On CPUs the transport is gloo with groups of our own, so that one process may hold several engines; on
accelerators it is what torch chose for the device (NCCL, HCCL), through torch's one default group. Sums are
made on CPUs in the order of the ranks and have the same bits whatever else is in the batch. Knows
nothing of models.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from telechat.device import CPU
from telechat.errors import RankError
from telechat.parallel.sharding import Layout

# torch's stubs leave half of this out.
c10d: Any = dist
HOST = "127.0.0.1"
# Ranks work in step: at most a layer's time lies between them once a model is loaded.
TIMEOUT = datetime.timedelta(seconds=120)


class RankGroup:
    """Some ranks, this one among them. Until `connect` a group of more than one cannot add.

    Args:
        members: numbers of the ranks, this one included, in order.
        rank: this rank's number.
    """

    def __init__(self, members: tuple[int, ...], rank: int) -> None:
        self.members = members
        self.index = members.index(rank)
        self._process_group: Any = None

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.members)

    def connect(self, process_group: Any) -> None:
        """Use this torch process group, whose ranks are `members`."""
        self._process_group = process_group

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors of one shape; `tensor` may be overwritten."""
        if self.size == 1:
            return tensor
        tensor = tensor.contiguous()
        # Two numbers have one order. More are added by accelerators in the order their library finds fastest.
        if self.size == 2 or tensor.device.type != CPU.type:
            self._process_group.allreduce([tensor]).wait()
            return tensor
        parts = [torch.empty_like(tensor) for _ in self.members]
        self._process_group.allgather([parts], [tensor]).wait()
        total = parts[0].float()
        for part in parts[1:]:
            total = total + part
        return tensor.copy_(total)

    def collect(self, part: Tensor) -> list[Tensor]:
        """All ranks' tensors of one shape and dtype, in order, on the group's first rank; [] elsewhere."""
        if self.size == 1:
            return [part]
        options = dist.GatherOptions()
        options.rootRank = 0
        parts = [torch.empty_like(part) for _ in self.members] if self.index == 0 else []
        self._process_group.gather([parts] if parts else [], [part.contiguous()], options).wait()
        return parts

    def wait_for_all(self) -> None:
        """Return when every rank has called this."""
        if self._process_group is not None:
            self._process_group.barrier().wait()


class Groups:
    """The groups of one rank: those it shares tensors with, and all ranks.

    Attributes:
        tensor: ranks that together hold the attention, the dense feed-forward block and the vocabulary.
        world: all ranks; together they hold the experts.
    """

    def __init__(self, layout: Layout, rank: int) -> None:
        self.layout = layout
        self.rank = rank
        first = rank - layout.tensor_index(rank)
        self.tensor = RankGroup(tuple(range(first, first + layout.tp)), rank)
        self.world = RankGroup(tuple(range(layout.world_size)), rank)
        self._store: Any = None

    def listen(self, port: int) -> int:
        """Open the meeting place of all ranks on this machine (rank 0); returns the port it has.

        Args:
            port: 0 takes any free one.

        Raises:
            RankError: the port is taken.
        """
        with contextlib.closing(socket.socket()) as listener:
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((HOST, port))
                listener.listen()
            except OSError as error:
                raise RankError(
                    f"The ranks cannot meet on port {port}: {error}.",
                    hint="Choose another with --master-port, or leave it out.",
                ) from error
            # Told only a port, the store would listen to the whole network.
            self._store = c10d.TCPStore(
                HOST,
                listener.getsockname()[1],
                is_master=True,
                wait_for_workers=False,
                timeout=TIMEOUT,
                master_listen_fd=listener.detach(),
            )
        return int(self._store.port)

    def connect(self, port: int, device: torch.device) -> None:
        """Meet the other ranks. All ranks call this after loading, when they are ready to work."""
        if self._store is None:
            self._store = c10d.TCPStore(HOST, port, is_master=False, timeout=TIMEOUT)
        if device.type == CPU.type:
            self.world.connect(self._gloo("world", self.world))
            if self.tensor.size == self.world.size:
                self.tensor.connect(self.world._process_group)
            elif self.tensor.size > 1:
                self.tensor.connect(self._gloo(f"tensor{self.tensor.members[0]}", self.tensor))
        else:
            self._connect_accelerators(device)
        self.world.wait_for_all()

    def _gloo(self, name: str, group: RankGroup) -> Any:
        store = c10d.PrefixStore(name, self._store)
        # By default gloo uses the address that the machine's name resolves to, if it does.
        options = c10d.ProcessGroupGloo._Options()
        options._timeout = TIMEOUT
        options._devices = [c10d.ProcessGroupGloo.create_device(hostname=HOST)]
        return c10d.ProcessGroupGloo(store, group.index, group.size, options)

    def _connect_accelerators(self, device: torch.device) -> None:
        if dist.is_initialized():
            raise RankError(
                "This process already uses torch.distributed; there can be no second group of accelerators.",
                hint="Close the other engine first, or start this one in a process of its own.",
            )
        dist.init_process_group(
            store=self._store,
            rank=self.rank,
            world_size=self.layout.world_size,
            device_id=device,
            timeout=TIMEOUT,
        )
        self.world.connect(dist.group.WORLD)
        for first in range(0, self.layout.world_size, self.layout.tp):
            members = list(range(first, first + self.layout.tp))
            process_group = dist.new_group(members)  # every rank takes part in making every group
            if self.rank in members:
                self.tensor.connect(process_group)

    def abort(self) -> None:
        """Let whoever waits for a rank that is gone fail at once."""
        for group in (self.tensor, self.world):
            if group._process_group is not None:
                group._process_group.abort()

    def close(self, *, in_order: bool) -> None:
        """Part from the other ranks; `in_order` waits for all of them, so that none is cut off."""
        if in_order:
            self.world.wait_for_all()
        else:
            self.abort()
        uses_default = self.world._process_group is not None and dist.is_initialized()
        if uses_default and self.world._process_group is dist.group.WORLD:
            dist.destroy_process_group()
        for group in (self.tensor, self.world):
            group._process_group = None
        self._store = None

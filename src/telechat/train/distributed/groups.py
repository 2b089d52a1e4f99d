"""The process groups of a layout, from one device mesh."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from telechat.device import CPU
from telechat.errors import ConfigError
from telechat.models.config import TeleChatConfig
from telechat.train.distributed.layout import AXES, ParallelLayout

c10d: Any = dist


class TrainGroups:
    """The groups one rank takes part in; every rank makes them alike and in the same order.

    Attributes:
        rank, place: this process.
        tp, pp, cp, ep: the ranks along an axis; None where this rank is alone.
        kv_copies: the tensor-parallel ranks that hold the same key/value head; None where there are none.
        ends: the first and the last process of this pipeline, where both hold a tied embedding; else None.
        dense_mesh, expert_mesh: the ranks that FSDP divides tensors over.
    """

    def __init__(self, layout: ParallelLayout, config: TeleChatConfig, device: torch.device) -> None:
        self.layout = layout
        self.rank = dist.get_rank()
        self.place = layout.place(self.rank)
        sizes = layout.sizes
        mesh = init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=AXES)
        self._mesh = mesh
        for axis in ("tp", "pp", "cp", "ep"):
            setattr(self, axis, mesh.get_group(axis) if sizes[axis] > 1 else None)
        self.dense_mesh: DeviceMesh = mesh["ep", "dp", "cp"]._flatten("dense")
        self.expert_mesh: DeviceMesh = mesh["dp", "cp"]._flatten("expert")
        copies = layout.tp // config.num_kv_heads
        self.kv_copies = self._make("tp", copies) if copies > 1 else None
        is_tied = config.tie_word_embeddings and layout.pp > 1
        self.ends = self._make_ends() if is_tied else None

    tp: Any | None
    pp: Any | None
    cp: Any | None
    ep: Any | None

    def _make(self, axis: str, size: int) -> Any:
        """This rank's group among runs of `size` neighbours along an axis."""
        found = None
        for first in range(self.layout.world_size):
            place = self.layout.place(first)
            if getattr(place, axis) % size:
                continue
            stride = _stride(self.layout, axis)
            ranks = [first + index * stride for index in range(size)]
            group = dist.new_group(ranks)
            if self.rank in ranks:
                found = group
        return found

    def _make_ends(self) -> Any | None:
        found = None
        stride = _stride(self.layout, "pp")
        for first in range(stride):
            ranks = [first, first + (self.layout.pp - 1) * stride]
            group = dist.new_group(ranks)
            if self.rank in ranks:
                found = group
        return found


def _stride(layout: ParallelLayout, axis: str) -> int:
    """Distance of neighbouring ranks along an axis."""
    stride = 1
    for name, size in reversed(layout.sizes.items()):
        if name == axis:
            break
        stride *= size
    return stride


def world_size() -> int:
    """Number of processes that a launcher started together with this one; 1 without a launcher.

    Raises:
        ConfigError: the launcher's variables are incomplete.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    size = int(text) if text.isdigit() else 0
    if size < 1 or (size > 1 and "RANK" not in os.environ):
        raise ConfigError(
            f"WORLD_SIZE is {text!r} and RANK is {os.environ.get('RANK')!r}; a launcher sets both.",
            hint="Start with: telechat launch --nproc-per-node N -- train ...",
        )
    return size


def is_first() -> bool:
    """Whether this process writes what there is one of, such as metrics and models."""
    return os.environ.get("RANK", "0") == "0"


def join(device: torch.device) -> None:
    """Meet the other processes that the launcher started, if this was not done yet."""
    if dist.is_initialized():
        return
    backend = "gloo"
    if device.type != CPU.type:
        torch.accelerator.set_device_index(device.index or 0)
        # Numbers and offloaded gradients are on the host.
        backend = f"cpu:gloo,{device.type}:{c10d.get_default_backend_for_device(device.type)}"
    if world_size() == 1:  # no launcher, so nobody to meet
        dist.init_process_group(backend, store=c10d.HashStore(), rank=0, world_size=1)
    elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # The launcher's store outlives processes that are started again; without a prefix they would find
        # their forerunners' addresses in it.
        store = c10d.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        attempt = c10d.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        rank = int(os.environ["RANK"])
        dist.init_process_group(backend, store=attempt, rank=rank, world_size=world_size())
    else:
        dist.init_process_group(backend)


def leave() -> None:
    """Part from the other processes, after all have come to this point.

    Without waiting, ranks that leave first make others abort at exit now and then.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()

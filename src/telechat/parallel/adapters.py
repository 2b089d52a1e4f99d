"""A low-rank adapter on several ranks: each keeps the part that belongs to its part of the weights.

Where a weight's outputs are cut, so are B's rows; where its inputs are, A's columns, and the sums over ranks
that the model makes anyway add up what the adapter gives. Knows no files and no executors.
"""

from __future__ import annotations

from safetensors.torch import load, save
from torch import Tensor

from telechat.models.adapters import AdapterLayers
from telechat.models.config import TeleChatConfig
from telechat.parallel.sharding import Layout, shard_table


def cut_adapter(
    layers: AdapterLayers, config: TeleChatConfig, layout: Layout, rank: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """A rank's part of an adapter."""
    shards = shard_table(config, layout, rank)
    parts = {}
    for name, (a, b) in layers.items():
        shard = shards[f"{name}.weight"]
        if shard.dim == 0:
            b = b[shard.start : shard.stop]
        elif shard.dim == 1:
            a = a[:, shard.start : shard.stop]
        if len(b):  # a rank beyond the end of a small vocabulary has no rows
            parts[name] = a.contiguous(), b.contiguous()
    return parts


def pack_layers(layers: AdapterLayers) -> bytes:
    """An adapter as bytes, for another process."""
    tensors = {}
    for name, (a, b) in layers.items():
        tensors[f"{name}.a"], tensors[f"{name}.b"] = a.contiguous(), b.contiguous().clone()
    return save(tensors)


def unpack_layers(payload: bytes) -> dict[str, tuple[Tensor, Tensor]]:
    """The adapter that `pack_layers` wrote."""
    tensors = load(payload)
    names = {name.rpartition(".")[0] for name in tensors}
    return {name: (tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in sorted(names)}

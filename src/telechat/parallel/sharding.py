"""Which part of every tensor a rank holds, by the parameter table.

Attention, the dense feed-forward block and the vocabulary are shared by `tp` ranks, the experts of a mixture
by `ep`. There are as many ranks as the larger of the two: with tp 4 and ep 2, two ranks share the inner width
of each expert; with tp 1 and ep 4, every rank computes the whole attention. Heads and inner widths must
divide; key/value heads are copied where there are fewer than ranks; the vocabulary may end unevenly.

Everything here is integers and views: inference, training and the resharding of checkpoints read the same
rules. Knows no process, device or file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from telechat.errors import CheckpointError, ConfigError
from telechat.models.config import TeleChatConfig
from telechat.models.parameters import Parameter, parameter_table
from telechat.ops.int8 import DynamicWeight, StaticWeight

_EXPERT = re.compile(r"\.local_experts\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many ranks share what.

    Attributes:
        tp: ranks that share heads, inner widths and vocabulary.
        ep: ranks, or groups of ranks, that share the experts of a mixture.
    """

    tp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "ep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if max(self.tp, self.ep) % min(self.tp, self.ep):
            raise ConfigError(
                f"tp {self.tp} and ep {self.ep} do not go together: one must be a multiple of the other.",
                hint="Both are counts of the same ranks.",
            )

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return max(self.tp, self.ep)

    @property
    def expert_tp(self) -> int:
        """Ranks that share one expert's inner width."""
        return self.world_size // self.ep

    def tensor_index(self, rank: int) -> int:
        """Which of the `tp` parts a rank holds."""
        return rank % self.tp

    def expert_index(self, rank: int) -> int:
        """Which of the `ep` sets of experts a rank holds."""
        return rank // self.expert_tp

    def expert_tensor_index(self, rank: int) -> int:
        """Which of the `expert_tp` parts of its experts' inner width a rank holds."""
        return rank % self.expert_tp


@dataclass(frozen=True)
class Shard:
    """A rank's part of one tensor: all of it, or the indices start .. stop-1 of dimension `dim`."""

    parameter: Parameter
    dim: int | None = None
    start: int = 0
    stop: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        extents = list(self.parameter.shape)
        if self.dim is not None:
            extents[self.dim] = self.stop - self.start
        return tuple(extents)

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a whole tensor; a view."""
        assert tensor.shape == self.parameter.shape, (self.parameter.name, tuple(tensor.shape))
        return tensor if self.dim is None else tensor.narrow(self.dim, self.start, self.stop - self.start)


def check_layout(config: TeleChatConfig, layout: Layout) -> None:
    """Refuse a layout that this model cannot be spread over.

    Raises:
        ConfigError: heads, key/value heads, inner width or experts do not divide; names both numbers.
    """
    tp, kv_heads = layout.tp, config.num_kv_heads
    if config.num_heads % tp:
        raise ConfigError(
            f"{config.num_heads} attention heads cannot be shared by {tp} ranks.",
            hint=f"Choose a tp that divides {config.num_heads}.",
        )
    if kv_heads % tp and tp % kv_heads:
        raise ConfigError(
            f"{kv_heads} key/value heads can neither be shared by {tp} ranks nor copied to them evenly.",
            hint=f"Choose a tp that divides {kv_heads} or is a multiple of it.",
        )
    if config.moe is None and layout.ep > 1:
        raise ConfigError(
            f"ep is {layout.ep}, but this model has no experts.", hint="Use tp to spread a dense model."
        )
    if config.moe is not None and config.moe.num_experts % layout.ep:
        raise ConfigError(
            f"{config.moe.num_experts} experts cannot be shared by {layout.ep} ranks.",
            hint=f"Choose an ep that divides {config.moe.num_experts}.",
        )
    shares = layout.expert_tp if config.moe else tp
    if config.ffn_hidden_size % shares:
        raise ConfigError(
            f"An inner width of {config.ffn_hidden_size} cannot be shared by {shares} ranks.",
            hint=f"Choose a number of ranks that divides {config.ffn_hidden_size}.",
        )


def local_heads(config: TeleChatConfig, layout: Layout) -> tuple[int, int]:
    """Query heads and key/value heads of one rank."""
    return config.num_heads // layout.tp, max(1, config.num_kv_heads // layout.tp)


def vocab_range(config: TeleChatConfig, layout: Layout, rank: int) -> tuple[int, int]:
    """First and one past the last token id of a rank; the last ranks may have fewer, or none."""
    size = -(-config.vocab_size // layout.tp)
    start = min(layout.tensor_index(rank) * size, config.vocab_size)
    return start, min(start + size, config.vocab_size)


def held_experts(config: TeleChatConfig, layout: Layout, rank: int) -> range:
    """The experts of each layer that a rank holds (or holds a part of); empty for a dense model."""
    count = config.moe.num_experts // layout.ep if config.moe else 0
    first = layout.expert_index(rank) * count
    return range(first, first + count)


def shard_of(parameter: Parameter, config: TeleChatConfig, layout: Layout, rank: int) -> Shard | None:
    """A rank's part of a tensor; None when it belongs to an expert of other ranks."""
    expert = _EXPERT.search(parameter.name)
    if expert and int(expert[1]) not in held_experts(config, layout, rank):
        return None
    if parameter.kind == "router":  # every rank routes every token
        return Shard(parameter)
    for dim, axis in enumerate(parameter.axes):
        limits = _axis_range(axis, bool(expert), config, layout, rank)
        if limits is not None:
            return Shard(parameter, dim, *limits)
    return Shard(parameter)


def _axis_range(
    axis: str, is_expert: bool, config: TeleChatConfig, layout: Layout, rank: int
) -> tuple[int, int] | None:
    """A rank's indices along a logical axis; None for an axis that is never cut."""
    index = layout.tensor_index(rank)
    heads, kv_heads = local_heads(config, layout)
    if axis == "heads":
        size = heads * config.head_dim
    elif axis == "kv_heads":
        # Each head's key rows are followed by its value rows, so whole heads are neighbours.
        size = kv_heads * 2 * config.head_dim
        index = index * config.num_kv_heads // layout.tp if config.num_kv_heads < layout.tp else index
    elif axis == "ffn" and is_expert:
        size, index = config.ffn_hidden_size // layout.expert_tp, layout.expert_tensor_index(rank)
    elif axis == "ffn":
        size = config.ffn_hidden_size // layout.tp
    elif axis == "vocab":
        return vocab_range(config, layout, rank)
    else:
        return None
    return index * size, (index + 1) * size


def shard_table(config: TeleChatConfig, layout: Layout, rank: int) -> dict[str, Shard]:
    """All that a rank holds, by name, in the order of the parameter table.

    Raises:
        ConfigError: the layout does not fit the model.
    """
    check_layout(config, layout)
    shards = (shard_of(parameter, config, layout, rank) for parameter in parameter_table(config))
    return {shard.parameter.name: shard for shard in shards if shard is not None}


def adds_bias(name: str, layout: Layout, rank: int) -> bool:
    """Whether a rank adds the bias of the layer that a tensor belongs to: one of those that share it does."""
    is_expert = _EXPERT.search(name) is not None
    return (layout.expert_tensor_index(rank) if is_expert else layout.tensor_index(rank)) == 0


def is_kept(shard: Shard, layout: Layout, rank: int) -> bool:
    """Whether a rank keeps its part of a tensor: not the bias that another rank adds."""
    return shard.parameter.kind != "bias" or adds_bias(shard.parameter.name, layout, rank)


def kept_parameters(shards: Mapping[str, Shard], layout: Layout, rank: int) -> tuple[Parameter, ...]:
    """Of a rank's `shard_table`, what it keeps, with the shapes of its parts."""
    kept = [shard for shard in shards.values() if is_kept(shard, layout, rank)]
    return tuple(replace(shard.parameter, shape=shard.shape) for shard in kept)


def cut_int8(
    weight: StaticWeight | DynamicWeight, shard: Shard, *, adds_bias: bool
) -> StaticWeight | DynamicWeight:
    """The part of a whole weight with int8 activations; views.

    Args:
        adds_bias: whether this rank adds what all sums over cut inputs get once.
    """
    assert weight.weight.shape == shard.parameter.shape, (shard.parameter.name, tuple(weight.weight.shape))
    if shard.dim is None:
        return weight
    if shard.dim == 0:
        return weight.take_rows(shard.start, shard.stop)
    if isinstance(weight, DynamicWeight):
        return weight.take_columns(shard.start, shard.stop)
    return weight.take_columns(shard.start, shard.stop, adds_bias=adds_bias)


def split(tensor: Tensor, parameter: Parameter, config: TeleChatConfig, layout: Layout) -> dict[int, Tensor]:
    """The parts of one tensor by rank, as views; ranks that hold nothing of it are left out."""
    shards = {rank: shard_of(parameter, config, layout, rank) for rank in range(layout.world_size)}
    return {rank: shard.of(tensor) for rank, shard in shards.items() if shard is not None}


def merge(
    parts: Mapping[int, Tensor], parameter: Parameter, config: TeleChatConfig, layout: Layout
) -> Tensor:
    """The whole tensor from the parts of all ranks.

    Raises:
        CheckpointError: a part is missing, has another shape, or differs from another rank's copy.
    """
    first = next(iter(parts.values()))
    whole = torch.empty(parameter.shape, dtype=first.dtype, device=first.device)
    written: dict[int, int] = {}  # where a part starts -> the rank it came from
    for rank in range(layout.world_size):
        shard = shard_of(parameter, config, layout, rank)
        if shard is None:
            continue
        part = parts.get(rank)
        if part is None or part.shape != shard.shape:
            found = "is missing" if part is None else f"has shape {list(part.shape)}"
            raise CheckpointError(
                f"{parameter.name}: the part of rank {rank} {found}; expected shape {list(shard.shape)}."
            )
        place = shard.of(whole)
        if shard.start not in written:
            place.copy_(part)
            written[shard.start] = rank
        elif not torch.equal(place, part):
            raise CheckpointError(
                f"{parameter.name}: ranks {written[shard.start]} and {rank} hold different copies."
            )
    return whole

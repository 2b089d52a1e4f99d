"""A built model made into one rank's part of it, from outside.

Attention keeps its share of the heads, the feed-forward block its share of the inner width, a mixture its
share of the experts; what these return is summed over the ranks, so every rank has the whole residual stream.
Embedding and head hold a range of the vocabulary: the embedding is summed too, the logits of a rank are those
of its range. A bias after a cut product is kept by one rank only, so that it is added once. Layers may be
plain or quantised: sums are made after whole blocks and know nothing of what is inside.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from telechat.errors import ConfigError
from telechat.layers.mlp import SwiGLU
from telechat.layers.moe import MixtureOfExperts
from telechat.layers.sums import OutputSum
from telechat.models import TeleChatModel
from telechat.models.parameters import Parameter
from telechat.ops.int8 import DynamicWeight, StaticWeight
from telechat.ops.quantized import QuantizedWeight
from telechat.parallel.groups import Groups, RankGroup
from telechat.parallel.sharding import (
    Layout,
    Shard,
    adds_bias,
    check_layout,
    cut_int8,
    held_experts,
    is_kept,
    kept_parameters,
    local_heads,
    shard_table,
    vocab_range,
)


class RankPart:
    """What one rank keeps of a model: its structure, and its cut of each tensor as it is read."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._shards: dict[str, Shard] = {}

    def prepare(self, model: TeleChatModel) -> None:
        """Give a model the structure of this rank; its weights, which may be on `meta`, come by `cut`.

        Raises:
            ConfigError: the layout does not fit the model.
        """
        prepare(model, self._groups)
        self._shards = shard_table(model.config, self._groups.layout, self._groups.rank)

    @property
    def rank(self) -> int:
        """Which one."""
        return self._groups.rank

    @property
    def tp(self) -> int:
        """Ranks that share each layer."""
        return self._groups.layout.tp

    @property
    def ep(self) -> int:
        """Ranks that share the experts."""
        return self._groups.layout.ep

    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters that this rank keeps something of, with the shapes of what it keeps."""
        return kept_parameters(self._shards, self._groups.layout, self._groups.rank)

    def cut(self, name: str, tensor: Tensor) -> Tensor | None:
        """The part of a tensor of the parameter table, a view; None when this rank keeps nothing of it."""
        shard = self._shard(name)
        return None if shard is None else shard.of(tensor)

    def cut_quantized(self, name: str, weight: QuantizedWeight) -> QuantizedWeight | None:
        """As `cut`, of the stored form of the weight with that name in the parameter table.

        Raises:
            ConfigError: the cut goes through a group of inputs that share a scale.
        """
        shard = self._shard(name)
        if shard is None or shard.dim is None:
            return None if shard is None else weight
        if shard.dim == 0:
            return weight.take_rows(shard.start, shard.stop)
        problem = weight.scheme.obstacle(shard.stop - shard.start)
        if problem:
            raise ConfigError(
                f"{name} cannot be shared by {self._groups.layout.world_size} ranks: {problem}.",
                hint="Use fewer ranks, or weights quantised in smaller groups.",
            )
        return weight.take_columns(shard.start, shard.stop)

    def cut_int8(
        self, name: str, weight: StaticWeight | DynamicWeight
    ) -> StaticWeight | DynamicWeight | None:
        """As `cut`, of a weight with int8 activations.

        Static ones have one range on all ranks. Of dynamic ones each rank finds the range of its own inputs,
        so a layer whose inputs are cut is rounded otherwise than on one rank.
        """
        shard = self._shards.get(name)
        has_bias = adds_bias(name, self._groups.layout, self.rank)
        return None if shard is None else cut_int8(weight, shard, adds_bias=has_bias)

    def _shard(self, name: str) -> Shard | None:
        shard = self._shards.get(name)
        return shard if shard is not None and is_kept(shard, self._groups.layout, self.rank) else None


class VocabEmbedding(nn.Embedding):
    """The rows of a range of token ids; other tokens come from the other ranks."""

    def __init__(self, start: int, stop: int, hidden_size: int, group: RankGroup, **factory: Any) -> None:
        super().__init__(stop - start, hidden_size, **factory)
        self.start = start
        self.group = group

    def forward(self, input: Tensor) -> Tensor:
        """int64 ids of the whole vocabulary [...] -> [..., hidden]."""
        local = input - self.start
        is_here = (local >= 0) & (local < self.weight.shape[0])
        if self.weight.shape[0]:
            rows = F.embedding(torch.where(is_here, local, 0), self.weight) * is_here[..., None]
        else:  # more ranks than a tiny vocabulary has parts
            rows = self.weight.new_zeros(*input.shape, self.weight.shape[1])
        return self.group.add_up(rows)


class ExpertElsewhere(nn.Module):
    """Stands where another rank's expert would be, and adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros like x."""
        return torch.zeros_like(x)


def prepare(model: TeleChatModel, groups: Groups) -> None:
    """Give a model the structure of one rank: heads, sums, vocabulary, experts. Weights are not touched.

    Raises:
        ConfigError: the layout does not fit the model.
    """
    config, layout, rank = model.config, groups.layout, groups.rank
    check_layout(config, layout)
    start, stop = vocab_range(config, layout, rank)
    old = model.transformer.word_embeddings.weight
    model.transformer.word_embeddings = VocabEmbedding(
        start, stop, config.hidden_size, groups.tensor, device=old.device, dtype=old.dtype
    )
    held = held_experts(config, layout, rank)
    _set_features(model, layout, rank)
    has_bias = layout.tensor_index(rank) == 0
    for block in model.transformer.blocks:
        attention, feed_forward = block.self_attention, block.mlp
        attention.num_heads, attention.num_kv_heads = local_heads(config, layout)
        attention.register_forward_hook(OutputSum(groups.tensor.add_up))
        if not has_bias:
            _drop_bias(attention.dense)
        if isinstance(feed_forward, MixtureOfExperts):
            feed_forward.register_forward_hook(OutputSum(groups.world.add_up))
            _keep_experts(feed_forward, held, adds_bias=layout.expert_tensor_index(rank) == 0)
            continue
        feed_forward.register_forward_hook(OutputSum(groups.tensor.add_up))
        if not has_bias:
            _drop_bias(feed_forward.down_proj)


def _drop_bias(linear: nn.Linear) -> None:
    linear.register_parameter("bias", None)


def _keep_experts(mixture: MixtureOfExperts, held: range, *, adds_bias: bool) -> None:
    for number, expert in enumerate(mixture.local_experts):
        if number not in held:
            mixture.local_experts[number] = ExpertElsewhere()
        elif not adds_bias:
            assert isinstance(expert, SwiGLU)
            _drop_bias(expert.down_proj)


def _set_features(model: TeleChatModel, layout: Layout, rank: int) -> None:
    """Let linear layers know their sizes: who replaces them by quantised ones asks."""
    modules = dict(model.named_modules())
    for name, shard in shard_table(model.config, layout, rank).items():
        module = modules[name.rpartition(".")[0]]
        if isinstance(module, nn.Linear) and shard.parameter.kind != "bias":
            module.out_features, module.in_features = shard.shape


def collect_logits(part_LV: Tensor, vocab_size: int, groups: Groups) -> Tensor | None:
    """Logits [L, vocab_size] on rank 0 from every rank's [L, its part of the vocabulary]; None elsewhere."""
    group = groups.tensor
    if 0 not in group.members:
        return None  # ranks beyond tp are copies of the first ones
    if not part_LV.shape[0]:
        return part_LV.new_empty(0, vocab_size)
    size = -(-vocab_size // group.size)
    parts = group.collect(F.pad(part_LV, (0, size - part_LV.shape[1])))
    return torch.cat(parts, dim=1)[:, :vocab_size] if parts else None

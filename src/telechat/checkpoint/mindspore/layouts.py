"""Strategies for TeleChat models: of a parallel layout, and of slices that come without one.

A layout counts data-parallel (dp), model-parallel (mp), pipeline (pp) and expert (ep) shares. Ranks are
numbered with pipeline stages outermost and model-parallel ranks innermost; expert shares are taken from the
data-parallel ranks. Knows the kv_concat names, and no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from telechat.checkpoint.formats.lazy import LazyTensor, zeros
from telechat.checkpoint.mindspore.naming import to_mindspore
from telechat.checkpoint.mindspore.strategy import Strategy, TensorLayout
from telechat.errors import CheckpointError, UsageError
from telechat.models import TeleChatConfig, parameter_table

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_AXES = {"dp": "dp", "mp": "mp", "tp": "mp", "pp": "pp", "ep": "ep"}
OPTIMIZER = "opt"
# Dimension of a weight that model-parallel ranks share.
_ROWS = ("tok_embeddings.embedding_weight", "attention.wq.weight", "attention.wk_v.weight",
         "feed_forward.w1.weight", "feed_forward.w3.weight", "lm_head.weight")  # fmt: skip
_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")
_EXPERTS = {
    "feed_forward.ffn.w1.weight": (0, 1),
    "feed_forward.ffn.w3.weight": (0, 1),
    "feed_forward.ffn.w2.weight": (0, 2),
    "feed_forward.ffn.w2.bias": (1, None),
}
_NORMS = ("norm.weight", "norm_out.weight")


@dataclass(frozen=True, kw_only=True)
class ParallelLayout:
    """How many ranks share what.

    Attributes:
        dp, mp, pp, ep: data-parallel copies, model-parallel shares, pipeline stages, expert shares.
        shard_optimizer: data-parallel ranks share what they would hold alike, as MindSpore's optimiser
            parallelism stores it; norms are not shared.
    """

    dp: int = 1
    mp: int = 1
    pp: int = 1
    ep: int = 1
    shard_optimizer: bool = False

    @property
    def num_ranks(self) -> int:
        """Number of ranks."""
        return self.dp * self.mp * self.pp


def parse_layout(text: str) -> ParallelLayout:
    """A layout from `dp8,mp2`: axes dp, mp (or tp), pp, ep with a number, and `opt`.

    Raises:
        UsageError: anything else.
    """
    counts: dict[str, int] = {}
    shard_optimizer = False
    for word in text.split(","):
        match = re.fullmatch(r"([a-z]+)(\d+)", word.strip())
        axis = _AXES.get(match[1]) if match else None
        if word.strip() == OPTIMIZER:
            shard_optimizer = True
        elif match is None or axis is None or axis in counts or int(match[2]) < 1:
            raise UsageError(
                f"{text!r} is no layout: {word.strip()!r} is no axis with a number, or comes twice.",
                hint="Write axes with numbers such as dp2,mp4,pp2,ep2, and opt for a sharded optimiser.",
            )
        else:
            counts[axis] = int(match[2])
    layout = ParallelLayout(**counts, shard_optimizer=shard_optimizer)
    if layout.dp % layout.ep:
        raise UsageError(
            f"ep {layout.ep} does not divide dp {layout.dp}; expert shares are taken from the dp ranks."
        )
    return layout


def strategy_of(config: TeleChatConfig, layout: ParallelLayout) -> Strategy:
    """The strategy of a model in the kv_concat layout.

    Raises:
        CheckpointError: heads, widths, layers or experts do not divide.
    """
    _check(config, layout)
    matrix = (layout.dp // layout.ep, layout.ep, layout.mp)
    stages: dict[int, dict[str, TensorLayout]] = {stage: {} for stage in range(layout.pp)}
    shapes = full_shapes(config)
    for name, shape in shapes.items():
        tensor_map = _tensor_map(name, shape, layout)
        shared = _replicas(tensor_map, matrix) if layout.shard_optimizer else 1
        sliced = TensorLayout(dev_matrix=matrix, tensor_map=tensor_map)
        rows = shape[0] // sliced.shards[0] if shape else 0
        if shared > 1 and not name.endswith(_NORMS) and rows % shared == 0:
            sliced = TensorLayout(
                dev_matrix=matrix,
                tensor_map=tensor_map,
                shard_step=layout.mp if any(0 in axes for axes in tensor_map) else 1,
                shard_size=shared,
            )
        stages[_stage(name, config, layout)][name] = sliced
    if config.tie_word_embeddings and layout.pp > 1:
        embedding = "model.tok_embeddings.embedding_weight"
        stages[layout.pp - 1][embedding] = stages[0][embedding]
    return Strategy(stages)


def _replicas(tensor_map: Sequence[Sequence[int]], matrix: Sequence[int]) -> int:
    """How many devices hold the same slice."""
    used = {axis for axes in tensor_map for axis in axes}
    count = 1
    for axis, extent in enumerate(reversed(matrix)):
        count *= 1 if axis in used else extent
    return count


def full_shapes(config: TeleChatConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the kv_concat layout."""
    table = {p.name: zeros(p.shape, torch.float32) for p in parameter_table(config)}
    return {name: tensor.shape for name, tensor in to_mindspore(table, config).items()}


def _check(config: TeleChatConfig, layout: ParallelLayout) -> None:
    extents = {
        "query heads": (config.num_heads, layout.mp),
        "key/value heads": (config.num_kv_heads, layout.mp),
        "inner width": (config.ffn_hidden_size, layout.mp),
    }
    if config.moe:
        extents["experts"] = (config.moe.num_experts, layout.ep)
    for what, (extent, count) in extents.items():
        if extent % count:
            raise CheckpointError(f"{extent} ({what}) cannot be shared by {count} ranks.")
    if layout.ep > 1 and not config.moe:
        raise CheckpointError(f"ep is {layout.ep}, but this model has no experts.")
    if layout.pp > config.num_layers:
        raise CheckpointError(f"{config.num_layers} layers cannot fill {layout.pp} pipeline stages.")


def _tensor_map(name: str, shape: tuple[int, ...], layout: ParallelLayout) -> tuple[tuple[int, ...], ...]:
    """Axes, counted from the right of [dp / ep, ep, mp], that cut each dimension."""
    axes: list[tuple[int, ...]] = [()] * len(shape)
    is_vocab = name.endswith((_ROWS[0], _ROWS[-1]))
    for leaf, (expert_dim, inner_dim) in _EXPERTS.items():
        if name.endswith(leaf):
            axes[expert_dim] = (1,) if layout.ep > 1 else ()
            if inner_dim is not None:
                axes[inner_dim] = (0,)
    if name.endswith(_ROWS) and not (is_vocab and shape[0] % layout.mp):
        axes[0] = (0,)
    elif name.endswith(_COLUMNS):
        axes[1] = (0,)
    return tuple(axes if layout.mp > 1 else [tuple(axis for axis in dim if axis) for dim in axes])


def _stage(name: str, config: TeleChatConfig, layout: ParallelLayout) -> int:
    match = _LAYER.match(name)
    if match:
        return int(match[1]) * layout.pp // config.num_layers
    return 0 if "tok_embeddings" in name else layout.pp - 1


def inferred_strategy(ranks: Sequence[Mapping[str, LazyTensor]], config: TeleChatConfig) -> Strategy:
    """The strategy of slices in the kv_concat layout that come without one: one stage, model-parallel only.

    Every tensor must be whole, or have one dimension of which each rank holds an equal share.

    Raises:
        CheckpointError: they are sliced in another way.
    """
    count = len(ranks)
    layouts: dict[str, TensorLayout] = {}
    for name, shape in full_shapes(config).items():
        local = ranks[0][name].shape if name in ranks[0] else None
        dims = [] if local is None or len(local) != len(shape) else _different(local, shape)
        if local is None or len(local) != len(shape) or len(dims) > 1 or any(
            local[dim] * count != shape[dim] for dim in dims
        ):  # fmt: skip
            raise CheckpointError(
                f"The slices of {count} ranks come without a strategy, and {name} {list(local or ())} is "
                f"no {count}th of {list(shape)} along one dimension.",
                hint="Name the strategy files with --strategy.",
            )
        tensor_map = tuple((0,) if dim in dims else () for dim in range(len(shape)))
        layouts[name] = TensorLayout(dev_matrix=(1, count), tensor_map=tensor_map)
    return Strategy({0: layouts})


def _different(local: Sequence[int], full: Sequence[int]) -> list[int]:
    return [dim for dim, (part, whole) in enumerate(zip(local, full, strict=True)) if part != whole]

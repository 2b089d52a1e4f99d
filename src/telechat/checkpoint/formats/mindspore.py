"""MindSpore checkpoints: one file, or a file for each rank, in any of MindFormers' layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from telechat.checkpoint.folder import CONFIG
from telechat.checkpoint.formats.hf import companions, json_bytes
from telechat.checkpoint.formats.lazy import LazyTensor
from telechat.checkpoint.formats.safetensors_file import plan_safetensors
from telechat.checkpoint.formats.table import Checkpoint, fit_table, without_tied_head
from telechat.checkpoint.formats.writing import FilePlan, TargetPlan
from telechat.checkpoint.mindspore.container import SUFFIX, Value, as_values, plan_ckpt
from telechat.checkpoint.mindspore.layouts import ParallelLayout, inferred_strategy, strategy_of
from telechat.checkpoint.mindspore.naming import (
    KV_CONCAT,
    Layout,
    arranged,
    from_mindspore,
    is_weight,
    to_mindspore,
    unarranged,
)
from telechat.checkpoint.mindspore.ranks import find_ranks, read_ranks
from telechat.checkpoint.mindspore.slicing import merge, split, without_pieces
from telechat.checkpoint.mindspore.strategy import Strategy, TensorLayout, read_strategy, strategy_files
from telechat.checkpoint.mindspore.telechat1_52b import (
    PLAIN,
    RowOrder,
    completed,
    is_mindspore_52b,
    reordered,
    to_mindspore_52b,
)
from telechat.checkpoint.save import folder_config
from telechat.errors import CheckpointError
from telechat.models import TeleChatConfig

NAME = "mindspore"
STRATEGY_FOLDER = "strategy"
DEFAULT_PREFIX = "checkpoint_"
SAFETENSORS = ".safetensors"
# What a fused tensor's rows become; they are sliced as it was.
_FUSED = {
    "attention.w_qkv.weight": ("attention.wq.weight", "attention.wk_v.weight"),
    "feed_forward.w_gate_hidden.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
}


def open_mindspore(
    path: Path,
    config: TeleChatConfig,
    strategy: Path | None = None,
    *,
    folder: Path | None = None,
    row_order: RowOrder = PLAIN,
) -> Checkpoint:
    """Open a file, or a folder with the files of several ranks.

    Args:
        strategy: strategy file or folder; without one that of a folder `strategy` in or beside `path` is
            taken, and without that, slices must be of model-parallel ranks only.
        folder: where the tokenizer is.
        row_order: of a single file of the TeleChat1-52B; the slices of ranks are in the plain order.

    Raises:
        CheckpointError: damaged, incomplete, or not what config and strategy say.
    """
    ranks = read_ranks(path)
    found = _strategy_for(path, strategy, len(ranks))
    if found is not None:
        check_number(path, len(ranks), found)
    is_52b = is_mindspore_52b(ranks[0])
    if row_order != PLAIN:
        if not is_52b or len(ranks) > 1:
            raise CheckpointError(
                f"{path.name} is no single file of a TeleChat1-52B.", hint="Leave --row-order out."
            )
        plain = {name: v.tensor for name, v in ranks[0].items() if v.is_tensor}
        ranks = [as_values(reordered(plain, config, row_order))]
    tensors = whole_tensors(ranks, config, found)
    named = without_tied_head(from_mindspore(tensors, config), config, path.name)
    ours = fit_table(completed(named, config) if is_52b else named, config, path.name)
    in_module_order = list(named) == list(ours)
    sliced = f" of {len(ranks)} ranks" if len(ranks) > 1 else ""
    return Checkpoint(
        config=config,
        tensors=ours,
        folder=folder,
        format=f"MindSpore checkpoint{sliced}",
        in_module_order=in_module_order,
        is_telechat1_52b=is_52b,
    )


def _strategy_for(path: Path, named: Path | None, num_ranks: int) -> Strategy | None:
    if named is not None:
        return read_strategy(named)
    places = (path / STRATEGY_FOLDER, path.parent / STRATEGY_FOLDER)
    found = next((place for place in places if place.is_dir()), None)
    is_tree = num_ranks > 1 or bool(find_ranks(path))
    return read_strategy(found) if found is not None and is_tree else None


def check_number(path: Path, num_ranks: int, strategy: Strategy) -> None:
    """Refuse fewer or more ranks than a strategy describes.

    Raises:
        CheckpointError: says both numbers.
    """
    if num_ranks != strategy.num_ranks:
        raise CheckpointError(
            f"{path} has files of {num_ranks} ranks; the strategy describes {strategy.num_ranks}.",
            hint="Copy the folders of all ranks there, or name the strategy that belongs to them.",
        )


def whole_tensors(
    ranks: Sequence[dict[str, Value]], config: TeleChatConfig, strategy: Strategy | None
) -> dict[str, LazyTensor]:
    """The model's tensors in the kv_concat layout, from the slices of ranks in any layout."""
    if strategy is not None:
        ranks, strategy = without_pieces(ranks, strategy)
        strategy = Strategy({stage: _unfused(layouts) for stage, layouts in strategy.stages.items()})
    plain = [
        unarranged({name: v.tensor for name, v in values.items() if is_weight(name) and v.is_tensor}, config)
        for values in ranks
    ]
    if len(plain) == 1:
        return plain[0]
    whole = merge([as_values(tensors) for tensors in plain], strategy or inferred_strategy(plain, config))
    return {name: value.tensor for name, value in whole.items()}


def _unfused(layouts: Mapping[str, TensorLayout]) -> dict[str, TensorLayout]:
    """The layouts of what fused tensors become."""
    result: dict[str, TensorLayout] = {}
    for name, layout in layouts.items():
        fused = next((leaf for leaf in _FUSED if name.endswith(leaf)), None)
        if fused is None:
            result[name] = layout
        else:
            result |= {name.removesuffix(fused) + leaf: layout for leaf in _FUSED[fused]}
    return result


def plan_mindspore(
    checkpoint: Checkpoint,
    target: Path,
    *,
    form: Layout = KV_CONCAT,
    layout: ParallelLayout | None = None,
    strategy: Strategy | None = None,
    prefix: str = DEFAULT_PREFIX,
    dtype: torch.dtype | None = None,
    with_crc: bool = False,
    row_order: RowOrder | None = None,
) -> TargetPlan:
    """The plan of a MindSpore checkpoint.

    Args:
        target: a file (`.ckpt`, or `.safetensors` in MindSpore's names), or a folder that gets `rank_N`
            folders, the strategy, config and tokenizer.
        form: which of MindFormers' layouts.
        layout, strategy: how it is sliced; one of the two, or neither.
        prefix: of file names.
        row_order: for a TeleChat1-52B, which is written in its own layout then.
        dtype: of all tensors; the experts of the gmm form stay float32.

    Raises:
        CheckpointError: MindFormers has no such model, or it cannot be sliced so.
    """
    config = checkpoint.config
    if form.gmm and config.moe is None:
        raise CheckpointError(
            "The gmm form is for experts, and this model has none.", hint="Leave --gmm out."
        )
    if row_order is not None:
        return _plan_52b(checkpoint, target, row_order, dtype, with_crc)
    named = to_mindspore(checkpoint.cast(dtype), config, by_name=not checkpoint.in_module_order)
    if layout is not None and layout.num_ranks > 1:
        strategy = strategy_of(config, layout)
    if target.suffix in (SUFFIX, SAFETENSORS):
        if strategy is not None:
            raise CheckpointError(
                f"{target.name} is one file; a layout of {strategy.num_ranks} ranks needs a folder."
            )
        return TargetPlan(
            files=(_plan_file(target.name, as_values(arranged(named, config, form)), with_crc),), is_file=True
        )
    small = {CONFIG: json_bytes(folder_config(config, dtype or checkpoint.dtype, None))}
    ranks: list[dict[str, Value]] = [as_values(arranged(named, config, form))]
    if strategy is not None:
        small |= {f"{STRATEGY_FOLDER}/{name}": v for name, v in strategy_files(strategy).items()}
        ranks = _sliced(named, config, form, strategy)
    return TargetPlan(
        files=plan_ranks(ranks, "", prefix, with_crc), small={**companions(checkpoint), **small}
    )


def _plan_52b(
    checkpoint: Checkpoint, target: Path, order: RowOrder, dtype: torch.dtype | None, with_crc: bool
) -> TargetPlan:
    if not checkpoint.is_telechat1_52b or target.suffix != SUFFIX:
        raise CheckpointError(
            "Only a TeleChat1-52B has a row order, and is then written as one file.",
            hint=f"Leave --row-order out, or name a file *{SUFFIX}.",
        )
    named = to_mindspore_52b(checkpoint.cast(dtype), checkpoint.config, order)
    return TargetPlan(files=(_plan_file(target.name, as_values(named), with_crc),), is_file=True)


def _sliced(
    named: dict[str, LazyTensor], config: TeleChatConfig, form: Layout, strategy: Strategy
) -> list[dict[str, Value]]:
    """Slices of every rank; what is fused or transposed is so within a rank."""
    layouts = [layout for stage in strategy.stages.values() for layout in stage.values()]
    if (form.qkv_concat or form.gmm) and any(layout.num_pieces > 1 for layout in layouts):
        raise CheckpointError(
            "A sharded optimiser cuts tensors that --qkv-concat and --gmm need whole.", hint="Leave opt out."
        )
    ranks = split(as_values(named), strategy)
    return [
        as_values(arranged({name: value.tensor for name, value in values.items()}, config, form))
        for values in ranks
    ]


def plan_ranks(
    ranks: Sequence[dict[str, Value]], folder: str, prefix: str, with_crc: bool = False
) -> tuple[FilePlan, ...]:
    """The files of all ranks: `rank_N/PREFIXN.ckpt`, below `folder`, which ends with a slash or is empty."""
    return tuple(
        plan_ckpt(f"{folder}rank_{number}/{prefix}{number}{SUFFIX}", values, with_crc=with_crc)
        for number, values in enumerate(ranks)
    )


def _plan_file(name: str, values: dict[str, Value], with_crc: bool) -> FilePlan:
    if name.endswith(SAFETENSORS):
        tensors = {key: value.tensor for key, value in values.items() if value.is_tensor}
        return plan_safetensors(name, tensors, metadata={"format": "ms"})
    return plan_ckpt(name, values, with_crc=with_crc)

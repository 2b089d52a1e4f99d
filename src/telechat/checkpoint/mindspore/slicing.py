"""Whole tensors from the slices of ranks, and slices from whole tensors, by a strategy.

Nothing is read: results are lazy tensors over the given ones. Values that a strategy does not name (counters,
learning rate) are copied; a weight that it does not name is an error, for its slices could be anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from telechat.checkpoint.formats.lazy import LazyTensor, Window, cut_window, join
from telechat.checkpoint.mindspore.container import Value, renamed
from telechat.checkpoint.mindspore.naming import is_weight
from telechat.checkpoint.mindspore.strategy import Strategy, TensorLayout
from telechat.errors import CheckpointError

Values = Mapping[str, Value]


def merge(ranks: Sequence[Values], strategy: Strategy) -> dict[str, Value]:
    """The whole tensors of ranks that together hold a checkpoint.

    Raises:
        CheckpointError: the strategy contradicts the ranks: how many there are, names or shapes.
    """
    factor = _replication(len(ranks), strategy)
    devices = strategy.devices_per_stage
    whole: dict[str, Value] = {}
    for place, stage in enumerate(sorted(strategy.stages)):
        first = place * devices * factor
        held = ranks[first : first + devices]
        for name, value in held[0].items():
            layout = strategy.stages[stage].get(name)
            if name in whole:
                continue
            if layout is not None:
                whole[name] = renamed(value, _gathered(name, layout, held, first))
            elif is_weight(name) and len(ranks) > 1 and value.is_tensor:
                raise CheckpointError(
                    f"The strategy says nothing of {name}.",
                    hint="Write strategies that include frozen parameters (only_trainable_params False).",
                )
            else:
                whole[name] = value
        for name in strategy.stages[stage]:
            if name not in whole and is_weight(name):
                raise CheckpointError(
                    f"The strategy describes {name}, which rank_{first} lacks.",
                    hint="Check that the strategy belongs to these files.",
                )
    return whole


def _replication(num_ranks: int, strategy: Strategy) -> int:
    """How often the devices of the strategy are repeated in the files."""
    if num_ranks % strategy.num_ranks:
        raise CheckpointError(
            f"There are files of {num_ranks} ranks; the strategy describes {strategy.num_ranks}.",
            hint="Check that the strategy belongs to these files, and that no rank is missing.",
        )
    return num_ranks // strategy.num_ranks


def _gathered(name: str, layout: TensorLayout, held: Sequence[Values], first: int) -> LazyTensor:
    """One whole tensor from the ranks of its stage."""
    local = held[0][name].tensor
    try:
        full = layout.full_shape(local.shape)
        found: dict[Window, LazyTensor] = {}
        for number, values in enumerate(held):
            if name not in values:
                raise CheckpointError(f"rank_{first + number} lacks {name}, which rank_{first} has.")
            part = values[name].tensor
            window = layout.window(number, full)
            if part.shape != local.shape or part.dtype != local.dtype:
                raise CheckpointError(
                    f"{name} has shape {list(part.shape)} in rank_{first + number} and {list(local.shape)} "
                    f"in rank_{first}.",
                    hint="Check that all files are of one training run.",
                )
            found.setdefault(window, part)
    except ValueError as error:
        raise CheckpointError(f"The strategy does not fit {name}: {error}.") from error
    return assembled(found)


def assembled(parts: Mapping[Window, LazyTensor]) -> LazyTensor:
    """A tensor from parts that tile it as a grid."""
    tiles = {tuple(start for start, _ in window): part for window, part in parts.items()}
    for axis in reversed(range(len(next(iter(tiles))))):
        lines: dict[tuple[int, ...], dict[int, LazyTensor]] = {}
        for place, part in tiles.items():
            lines.setdefault((*place[:axis], 0, *place[axis + 1 :]), {})[place[axis]] = part
        tiles = {place: join([line[at] for at in sorted(line)], axis) for place, line in lines.items()}
    [(_, tensor)] = tiles.items()
    return tensor


def split(whole: Values, strategy: Strategy) -> list[dict[str, Value]]:
    """The slices of every rank, from whole tensors.

    Raises:
        CheckpointError: the strategy describes another model.
    """
    held = set().union(*strategy.stages.values())
    for name, value in whole.items():
        if is_weight(name) and value.is_tensor and name not in held:
            raise CheckpointError(
                f"The strategy says nothing of {name}.", hint="Check that it is this model's."
            )
    missing = [name for name in strategy.names if name not in whole and is_weight(name)]
    if missing:
        raise CheckpointError(f"The strategy describes {missing[0]}, which the checkpoint lacks.")
    ranks = []
    for rank in range(strategy.num_ranks):
        layouts, local = strategy.layouts_of(rank)
        mine: dict[str, Value] = {}
        for name, value in whole.items():
            if name in layouts:
                mine[name] = renamed(value, _slice(name, value.tensor, layouts[name], local))
            elif name not in held:
                mine[name] = value
        ranks.append(mine)
    return ranks


def _slice(name: str, tensor: LazyTensor, layout: TensorLayout, local_rank: int) -> LazyTensor:
    try:
        return cut_window(tensor, layout.window(local_rank, tensor.shape))
    except ValueError as error:
        raise CheckpointError(f"{name} {list(tensor.shape)} cannot be sliced: {error}.") from error


def without_pieces(ranks: Sequence[Values], strategy: Strategy) -> tuple[list[dict[str, Value]], Strategy]:
    """Ranks and strategy with optimiser sharding undone: every rank holds its slice of the model in full.

    Raises:
        CheckpointError: as `merge`.
    """
    factor = _replication(len(ranks), strategy)
    devices = strategy.devices_per_stage
    joined: list[dict[str, Value]] = []
    for place, stage in enumerate(sorted(strategy.stages)):
        first = place * devices * factor
        held = ranks[first : first + devices]
        for number, values in enumerate(held):
            mine = dict(values)
            for name, layout in strategy.stages[stage].items():
                if layout.num_pieces > 1 and name in values:
                    whole = _gathered(name, layout, held, first)
                    mine[name] = renamed(values[name], _slice(name, whole, layout.without_pieces(), number))
            joined.append(mine)
    plain = {
        stage: {name: layout.without_pieces() for name, layout in layouts.items()}
        for stage, layouts in strategy.stages.items()
    }
    return joined, Strategy(plain)

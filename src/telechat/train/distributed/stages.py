"""Which layers each pipeline stage holds. Integers only.

Stages are numbered through the model. With several rounds (interleaving), process p holds the stages p,
p + pp, p + 2 pp and so on. An offset shifts layers between stages as in MindFormers: the stages at the ends,
which also hold the embedding and the head, are given fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from telechat.errors import ConfigError
from telechat.train.distributed.layout import ParallelLayout


def stage_layers(num_layers: int, layout: ParallelLayout) -> list[range]:
    """The layers of every stage, first stage first.

    Raises:
        ConfigError: the offsets have another shape than the stages, do not add up to the layers, or leave a
            stage with fewer than no layers.
    """
    counts = [count for row in layer_counts(num_layers, layout) for count in row]
    stages = []
    first = 0
    for count in counts:
        stages.append(range(first, first + count))
        first += count
    return stages


def layer_counts(num_layers: int, layout: ParallelLayout) -> list[list[int]]:
    """Layers of each round and process: `pp_interleave` rows of `pp` numbers."""
    rounds, pp = layout.pp_interleave, layout.pp
    share, rest = divmod(num_layers, pp * rounds)
    offsets = _offset_rows(layout)
    if not offsets:
        # Without offsets, what does not divide goes to the stages in the middle: the first and the last
        # also hold the embedding and the head.
        counts = [share] * (pp * rounds)
        middle = sorted(range(pp * rounds), key=lambda stage: abs(2 * stage - (pp * rounds - 1)))
        for stage in middle[:rest]:
            counts[stage] += 1
        return [counts[start : start + pp] for start in range(0, pp * rounds, pp)]
    table = [[share + offset for offset in row] for row in offsets]
    total = sum(map(sum, table))
    if total != num_layers or min(map(min, table)) < 0:
        raise ConfigError(
            f"parallel.pp_offset {_plain(offsets)} gives stages of {_plain(table)} layers, {total} in all; "
            f"the model has {num_layers}.",
            hint=f"Each stage has {num_layers} // {pp * rounds} = {share} layers plus its offset; "
            f"the offsets must sum to {rest}.",
        )
    return table


def _offset_rows(layout: ParallelLayout) -> list[Sequence[int]]:
    offset = layout.pp_offset
    if not offset:
        return []
    is_table = isinstance(offset[0], tuple)
    rows = [cast("Sequence[int]", row) for row in offset] if is_table else [cast("Sequence[int]", offset)]
    rounds, pp = layout.pp_interleave, layout.pp
    if len(rows) != rounds or any(len(row) != pp for row in rows):
        raise ConfigError(
            f"parallel.pp_offset has {len(rows)} rows of {sorted({len(row) for row in rows})} numbers; "
            f"expected {rounds} (parallel.pp_interleave) of {pp} (parallel.pp)."
        )
    return rows


def _plain(rows: Sequence[Sequence[int]]) -> str:
    return " ".join(str(list(row)) for row in rows)

"""Which samples go into which step: decided with integers only, and a function of seed and step alone.

Rows are shuffled per epoch, sorted by length within large buckets so that little is padded, cut into batches
of at most `max_tokens` padded tokens, and the batches shuffled again. A step takes several of them. Resuming
at a step needs no stored state.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence


def epoch_batches(
    lengths: Sequence[int], *, max_tokens: int, rows_per_bucket: int, seed: int, epoch: int
) -> list[list[int]]:
    """All batches of one epoch; every row index occurs exactly once.

    Args:
        lengths: tokens per row.
        max_tokens: limit of rows * longest row in a batch; a longer single row stands alone.
    """
    generator = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    generator.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), rows_per_bucket):
        bucket = sorted(order[start : start + rows_per_bucket], key=lambda row: lengths[row])
        batch: list[int] = []
        for row in bucket:  # ascending, so the newest row is the longest
            if batch and (len(batch) + 1) * lengths[row] > max_tokens:
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
    generator.shuffle(batches)
    return batches


def steps_from(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    batches_per_step: int,
    rows_per_bucket: int,
    seed: int,
    first_step: int,
) -> Iterator[tuple[int, list[list[int]]]]:
    """Endless (epoch, batches of the step) from step `first_step` on; a step may span two epochs."""
    skip = first_step * batches_per_step
    step: list[list[int]] = []
    epoch = 0
    while True:
        batches = epoch_batches(
            lengths, max_tokens=max_tokens, rows_per_bucket=rows_per_bucket, seed=seed, epoch=epoch
        )
        for batch in batches[skip:]:
            step.append(batch)
            if len(step) == batches_per_step:
                yield epoch, step
                step = []
        skip = max(0, skip - len(batches))
        epoch += 1

"""TeleChat2's pre-training script: rows by weight, `<_end>` after each text, grouping.

Kept here: texts are cut at the length, and what is left over when grouping is dropped. Not kept: that padding
is trained on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def draw_rows(num_rows: int, weight: float, generator: random.Random) -> list[int]:
    """int(rows * weight) rows, going round in orders that are shuffled anew."""
    total = int(num_rows * weight)
    rows: list[int] = []
    while len(rows) < total:
        order = list(range(num_rows))
        generator.shuffle(order)
        rows += order
    return rows[:total]


def group(texts: Sequence[Sequence[int]], max_length: int) -> list[list[int]]:
    """All texts end to end, cut into samples of `max_length`; the remainder is dropped unless it is all.

    Args:
        texts: token ids with their `<_end>`.
    """
    joined = [token_id for text in texts for token_id in text]
    whole = len(joined) // max_length * max_length
    end = whole if whole else len(joined)
    return [joined[start : start + max_length] for start in range(0, end, max_length)]


def members(lengths: Sequence[int], num_samples: int, max_length: int) -> list[list[int]]:
    """For each sample of `group`, the numbers of the texts that have a token in it.

    Args:
        lengths: tokens of each text, at least one.
    """
    found: list[list[int]] = [[] for _ in range(num_samples)]
    start = 0
    for number, length in enumerate(lengths):
        for sample in range(start // max_length, min(num_samples, (start + length - 1) // max_length + 1)):
            found[sample].append(number)
        start += length
    return found

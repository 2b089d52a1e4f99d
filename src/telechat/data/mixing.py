"""How often each row of a file is used, from the file's weight.

round(weight * rows) rows are used: whole copies of the file, and for the rest different rows drawn with the
seed. The official drawings, which lose rows by chance, are in `official`.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

from telechat.data.accounting import COPIES, NOT_DRAWN
from telechat.data.reading import Books
from telechat.data.sequences import Sequences


def copies_per_row(num_rows: int, weight: float, *, seed: int, name: str) -> npt.NDArray[np.int64]:
    """How often each row is used, int64 [num_rows]; the sum is round(weight * num_rows).

    Args:
        name: `Source.drawn_as`, so that files of one seed are drawn independently.
    """
    whole, rest = divmod(round(weight * num_rows), num_rows) if num_rows else (0, 0)
    copies = np.full(num_rows, whole, dtype=np.int64)
    copies[random.Random(f"{seed}/{name}").sample(range(num_rows), rest)] += 1
    return copies


def used_sequences(
    sequences: Sequences, row_starts: list[int], copies: npt.NDArray[np.int64], books: Books
) -> npt.NDArray[np.int64]:
    """Numbers of the sequences that are used, as often as they are; the difference is noted.

    Args:
        row_starts: number of each row's first sequence.
        copies: int64 [rows], how often each is used.
    """
    starts = np.array([*row_starts, len(sequences)], dtype=np.int64)
    tokens_per_row = np.diff(sequences.offsets[starts])
    books.drop(NOT_DRAWN, int(tokens_per_row[copies == 0].sum()), rows=int((copies == 0).sum()))
    further = np.maximum(copies - 1, 0)
    books.add(COPIES, int((tokens_per_row * further).sum()), rows=int(further.sum()))
    rows = np.repeat(np.arange(len(row_starts)), copies)
    counts = np.diff(starts)[rows]
    # A row's sequences stay together: its first number, and how far each is from it.
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    numbers: npt.NDArray[np.int64] = np.repeat(starts[rows], counts) + within
    return numbers

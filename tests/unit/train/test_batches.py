"""Batches lose no row, respect the limit, and are a function of seed and step alone."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from telechat.train.batches import epoch_batches, steps_from

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=120)


@given(LENGTHS, st.integers(1, 50), st.integers(300, 2000))
def test_every_row_occurs_once_and_fits(lengths: list[int], rows_per_bucket: int, max_tokens: int) -> None:
    batches = epoch_batches(lengths, max_tokens=max_tokens, rows_per_bucket=rows_per_bucket, seed=1, epoch=0)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[row] for row in batch) <= max_tokens for batch in batches)


def test_a_row_over_the_limit_stands_alone() -> None:
    batches = epoch_batches([5, 500, 5], max_tokens=100, rows_per_bucket=10, seed=1, epoch=0)
    assert [1] in batches


@given(LENGTHS, st.integers(1, 4), st.integers(0, 40))
def test_resuming_continues_the_same_sequence(lengths: list[int], batches_per_step: int, first: int) -> None:
    def steps(first_step: int, count: int) -> list[tuple[int, list[list[int]]]]:
        generator = steps_from(
            lengths,
            max_tokens=600,
            batches_per_step=batches_per_step,
            rows_per_bucket=16,
            seed=3,
            first_step=first_step,
        )
        return list(itertools.islice(generator, count))

    assert steps(0, first + 5)[first:] == steps(first, 5)


def test_seeds_and_epochs_differ() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return epoch_batches(list(range(1, 60)), max_tokens=200, rows_per_bucket=8, seed=seed, epoch=epoch)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 1)

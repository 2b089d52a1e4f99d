"""What each step shows: the same whatever the number of ranks, and every sample once a pass."""

from __future__ import annotations

import pytest
import torch
from tests.unit.train.test_loop import CountingSamples

from telechat.errors import ConfigError
from telechat.train.config import BatchSection
from telechat.train.feed import Feed

SECTION = BatchSection(tokens_per_step=128, micro_batches=4, rows_per_bucket=20)


def feed(rank: int = 0, num_ranks: int = 1, *, row_length: int | None = None, seed: int = 1) -> Feed:
    return Feed(
        CountingSamples(), SECTION, row_length=row_length, pad_id=3, seed=seed, rank=rank, num_ranks=num_ranks
    )


def test_ranks_share_the_step_of_one() -> None:
    alone, ranks = feed().steps(3), [feed(rank, 2).steps(3) for rank in range(2)]
    for _ in range(5):
        whole = next(alone)
        shares = [next(rank) for rank in ranks]
        assert sorted(map(sorted, whole.samples)) == sorted(
            sorted(samples) for share in shares for samples in share.samples
        )
        assert {share.num_tokens for share in shares} == {whole.num_tokens}
        assert all(len(share.batches) == 2 for share in shares)


def test_steps_do_not_depend_on_those_before() -> None:
    from_start = feed().steps(0)
    for _ in range(7):
        next(from_start)
    later, same = next(from_start), next(feed().steps(7))
    assert later.samples == same.samples and later.epoch == same.epoch
    for a, b in zip(later.batches, same.batches, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.targets, b.targets)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_one_pass_shows_every_sample_once_in_equally_many_batches(num_ranks: int) -> None:
    passes = [list(feed(rank, num_ranks).one_pass()) for rank in range(num_ranks)]
    assert len({len(batches) for batches in passes}) == 1
    shown = sum(batch.num_tokens for batches in passes for batch in batches)
    assert shown == sum(CountingSamples().lengths)


@pytest.mark.parametrize(("tokens", "rows"), [(4096, 8), (512, 4), (128, 3)])
def test_shapes_are_rounded_up_without_packing_but_not_beyond_a_full_batch(tokens: int, rows: int) -> None:
    section = BatchSection(tokens_per_step=tokens, micro_batches=4)
    batches = Feed(CountingSamples(), section, row_length=None, pad_id=3, seed=1)
    assert batches.collate([0, 1, 2]).ids.shape == (rows, 32)


def test_a_batch_with_room_for_nine_rows_has_nine_not_sixteen() -> None:
    section = BatchSection(tokens_per_step=9 * 32, micro_batches=1)
    batches = Feed(CountingSamples(), section, row_length=None, pad_id=3, seed=1)
    assert batches.collate(range(9)).ids.shape == (9, 32)


def test_packed_batches_have_one_shape() -> None:
    shapes = {tuple(batch.ids.shape) for batch in feed(row_length=16).one_pass()}
    assert shapes == {(2, 16)}


def test_the_fingerprint_tells_order_and_data_apart() -> None:
    assert feed().fingerprint() == feed(1, 2).fingerprint()
    assert len({feed().fingerprint(), feed(seed=2).fingerprint(), feed(row_length=16).fingerprint()}) == 3


def test_ranks_that_cannot_share_are_refused() -> None:
    with pytest.raises(ConfigError, match="micro_batches is 4; 3 data-parallel ranks cannot share"):
        feed(0, 3)


def test_a_row_longer_than_a_micro_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"holds 32 tokens .* one row has 64"):
        feed(row_length=64)

"""Samples as batches: shapes, padding rows, and packing at size."""

from __future__ import annotations

import numpy as np
import pytest

from telechat.data.packing import pack_best_fit
from telechat.data.samples import fill_batch
from telechat.data.sequences import Encoded, SequenceBuilder, Sequences


def three() -> Sequences:
    builder = SequenceBuilder()
    builder.add(Encoded([10, 11, 12], [False, True, True]))
    builder.add(Encoded([20, 21], [True, True]))
    builder.add(Encoded([30], [True]))
    return builder.finish()


def test_targets_are_shifted_and_stop_at_borders() -> None:
    batch = fill_batch(three(), [[0, 1], [2]], pad_id=3)
    assert batch.ids.tolist() == [[10, 11, 12, 20, 21], [30, 3, 3, 3, 3]]
    assert batch.targets.tolist() == [[11, 12, -100, 21, -100], [-100] * 5]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1], [0] * 5]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1], [0, -1, -1, -1, -1]]
    assert (batch.ids.dtype, batch.segments.dtype) == (np.int64, np.int32)


def test_first_tokens_are_no_targets() -> None:
    assert three().num_targets.tolist() == [2, 1, 0]
    assert three().num_targets.sum() == sum(
        (fill_batch(three(), [[number]], pad_id=3).targets != -100).sum() for number in range(3)
    )


def test_shapes_may_be_larger_but_not_smaller() -> None:
    batch = fill_batch(three(), [[0]], pad_id=3, num_rows=2, length=6)
    assert batch.ids.shape == (2, 6) and (batch.segments[1] == -1).all()
    assert fill_batch(three(), [], pad_id=3, num_rows=2, length=4).ids.shape == (2, 4)
    with pytest.raises(AssertionError, match="3 tokens in 2 places"):
        fill_batch(three(), [[0]], pad_id=3, length=2)
    with pytest.raises(AssertionError, match="2 samples in 1 rows"):
        fill_batch(three(), [[0], [1]], pad_id=3, num_rows=1)


def test_sequences_are_taken_in_any_order() -> None:
    taken = three().take(np.array([2, 0, 2]))
    assert taken.ids.tolist() == [30, 10, 11, 12, 30] and taken.offsets.tolist() == [0, 1, 4, 5]
    assert three().take(np.array([], dtype=np.int64)).offsets.tolist() == [0]


def test_too_long_for_the_capacity_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="a length of 9 exceeds the capacity of 8"):
        pack_best_fit([9], 8)

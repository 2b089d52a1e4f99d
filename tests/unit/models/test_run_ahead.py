"""Decoding steps that are begun before the host knows their tokens change nothing but the time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.models.paged_driver import Driver, text
from tests.unit.models.plain_kernels import PretendRecorder, plain_kernels
from tests.unit.models.small import SMALL, small_model

from telechat.device import HostCopy
from telechat.layers.rotary import RopeSettings
from telechat.models.fused import FusedExecutor
from telechat.models.paged import RunsAhead, TorchExecutor
from telechat.ops.paged_choice import REFERENCE

BLOCK_SIZE = 16
CONFIG = SMALL.replace(rope=RopeSettings(base_length=64, training_length=64))


class Pair:
    """The executor in question, which runs ahead after each step, and one that does not."""

    def __init__(self, **options: Any) -> None:
        self.recorder = PretendRecorder()
        self.has_more: set[str] = set()
        model = small_model(CONFIG, **options)
        self.ours = Driver(FusedExecutor(model, plain_kernels(self.recorder), paged=REFERENCE))
        self.reference = Driver(TorchExecutor(model, kernels=REFERENCE))

    def step(self, pieces: dict[str, list[int]], *, guess: dict[str, int] | None = None) -> int:
        """Compare a step; then begin the next one with `guess`. Returns the replays that took."""
        before = self.recorder.replayed
        # A block more than is needed at the moment.
        for name in self.has_more & set(pieces):
            table = self.ours.tables[name]
            if len(table) * BLOCK_SIZE <= self.ours.lengths[name] + 1:
                table.append(self.ours.free.pop())
        actual, expected = self.ours.run(pieces), self.reference.run(pieces)
        for name in pieces:
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-4)
        replays = self.recorder.replayed - before
        if guess is not None:
            executor = self.ours.executor
            assert isinstance(executor, RunsAhead)
            executor.run_ahead(HostCopy(torch.tensor(list(guess.values()))))
        return replays


def test_a_step_begun_early_is_not_computed_again() -> None:
    pair = Pair()
    pair.step({"a": text(5, 1), "b": text(9, 2)})
    assert pair.step({"a": [3], "b": [4]}, guess={"a": 5, "b": 6}) == 1
    assert pair.step({"a": [5], "b": [6]}, guess={"a": 7, "b": 8}) == 0
    assert pair.step({"b": [8], "a": [7]}, guess={"b": 1, "a": 2}) == 0, "another order"
    assert pair.step({"b": [1], "a": [2]}) == 0
    # Nothing was begun behind that.
    assert pair.step({"b": [9], "a": [9]}) == 1


def test_a_sequence_that_ended_is_left_out() -> None:
    pair = Pair()
    pair.step({"a": text(5, 1), "b": text(9, 2), "c": text(3, 3)})
    pair.step({"a": [3], "b": [4], "c": [5]}, guess={"a": 6, "b": -1, "c": 8})
    assert pair.step({"c": [8], "a": [6]}, guess={"c": 9, "a": 10}) == 0
    assert pair.step({"c": [9], "a": [10]}) == 0


@pytest.mark.parametrize("change", ["token", "newcomer", "gap"])
def test_another_step_than_the_one_begun(change: str) -> None:
    pair = Pair()
    pair.step({"a": text(5, 1), "b": text(9, 2)})
    pair.step({"a": [3], "b": [4]}, guess={"a": 5, "b": 6})
    if change == "token":
        assert pair.step({"a": [5], "b": [7]}) == 1
    elif change == "newcomer":
        assert pair.step({"a": [5], "b": [6], "c": [7]}) == 1
    else:  # a step of its own in between
        pair.step({"c": text(4, 4)})
        assert pair.step({"a": [5], "b": [6]}) == 1
    # The early step wrote keys; what is read afterwards are the right ones.
    assert pair.step({"a": [8], "b": [9]}) == 1


def test_a_block_given_to_somebody_else() -> None:
    """A sequence of the same place, length and token as the one begun, but with another block before."""
    pair = Pair()
    pair.step({"a": text(20, 1), "b": text(21, 9)})
    pair.step({"a": [3]}, guess={"a": 5})
    for driver in (pair.ours, pair.reference):
        driver.tables["b"][1] = driver.tables["a"][1]
    assert pair.step({"b": [5]}) == 1


def test_no_place_is_taken_that_the_sequence_has_not() -> None:
    pair = Pair()
    pair.step({"a": text(14, 1), "b": text(3, 2)})
    pair.step({"a": [3], "b": [3]}, guess={"a": 4, "b": 4})
    # Both have been begun; now the first one's block is full, and its next token has none yet.
    assert pair.step({"a": [4], "b": [4]}, guess={"a": 5, "b": 5}) == 0
    assert pair.step({"a": [5], "b": [5]}) == 1


def test_a_block_that_the_sequence_has_already_is_used() -> None:
    pair = Pair()
    pair.step({"a": text(14, 1), "b": text(3, 2)})
    pair.has_more = {"a"}
    pair.step({"a": [3], "b": [3]}, guess={"a": 4, "b": 4})
    assert pair.step({"a": [4], "b": [4]}, guess={"a": 5, "b": 5}) == 0
    assert pair.ours.lengths["a"] == BLOCK_SIZE
    assert pair.step({"a": [5], "b": [5]}, guess={"a": 6, "b": 6}) == 0
    assert pair.step({"a": [6], "b": [6]}) == 0


def test_not_past_the_longest_recorded_sequence() -> None:
    pair = Pair()
    pair.step({"a": text(62, 1)})
    assert pair.step({"a": [3]}, guess={"a": 4}) == 1
    assert pair.step({"a": [4]}, guess={"a": 5}) == 0
    assert pair.step({"a": [5]}) == 0, "not recorded: its rotary table is another"


def test_only_behind_steps_whose_every_row_is_wanted() -> None:
    pair = Pair()
    pair.step({"a": text(5, 1), "b": text(9, 2)})
    batch = pair.ours.batch({"a": [3], "b": [4]})
    object.__setattr__(batch, "logit_rows_L", torch.tensor([1]))
    pair.ours.executor.forward(batch)
    assert isinstance(pair.ours.executor, RunsAhead)
    pair.ours.executor.run_ahead(HostCopy(torch.tensor([6])))
    assert pair.recorder.replayed == 1


def test_static_table() -> None:
    pair = Pair(rope_mode="static", static_length=200)
    ids = text(70, 1)
    for driver in (pair.ours, pair.reference):
        driver.run({"a": ids}, rope_length=200)
    for token in range(3):
        actual, expected = (
            driver.run({"a": [token]}, rope_length=200)["a"] for driver in (pair.ours, pair.reference)
        )
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert pair.recorder.replayed == 3

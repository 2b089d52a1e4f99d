"""A batch arrives as it was sent, and a pipe that nobody reads is noticed."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from telechat.models.paged import PagedBatch
from telechat.ops.paged import Sequences
from telechat.parallel import wire
from telechat.parallel.wire import Order


def make_batch(*, is_counted: bool = True, num_wanted: int = 2) -> PagedBatch:
    tables = torch.arange(12, dtype=torch.int32).view(2, 6)
    counts = (3, 40) if is_counted else (None, None)
    sequences = Sequences(
        torch.tensor([0, 3, 4], dtype=torch.int32), torch.tensor([3, 40], dtype=torch.int32), tables, *counts
    )
    return PagedBatch(
        token_ids_T=torch.tensor([7, 8, 9, 10]),
        positions_T=torch.tensor([0, 1, 2, 39]),
        rope_runs=[(3, 256), (4, 512)],
        slots_T=torch.tensor([0, 1, 2, 135]),
        sequences=sequences,
        logit_rows_L=torch.tensor([2, 3])[:num_wanted],
        adapter_runs=[(3, None), (4, 2)],
    )


@pytest.mark.parametrize("is_counted", [True, False])
@pytest.mark.parametrize("num_wanted", [0, 2])
def test_a_batch_arrives_as_it_was_sent(is_counted: bool, num_wanted: int) -> None:
    batch = make_batch(is_counted=is_counted, num_wanted=num_wanted)
    found = wire.unpack_batch(bytearray(wire.pack_batch(batch, 16)))
    # Every field, so that a new one that is not sent fails here.
    for field in dataclasses.fields(PagedBatch):
        ours, sent = getattr(found, field.name), getattr(batch, field.name)
        if isinstance(sent, torch.Tensor):
            assert torch.equal(ours, sent) and ours.dtype == sent.dtype
        elif field.name == "sequences":
            # 40 tokens need three blocks of 16; where nobody counted, the whole tables are sent.
            assert torch.equal(ours.block_tables, sent.block_tables[:, : 3 if is_counted else 6])
            for inner in dataclasses.fields(Sequences):
                value = getattr(sent, inner.name)
                if inner.name != "block_tables":
                    same = torch.equal if isinstance(value, torch.Tensor) else int.__eq__
                    assert value is getattr(ours, inner.name) is None or same(
                        value, getattr(ours, inner.name)
                    )
        else:
            assert ours == sent


def test_frames_and_the_end() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wire.send(writer, Order.FORWARD, b"abc", timeout_s=1)
    wire.send(writer, Order.CLOSE, b"", timeout_s=1)
    os.close(writer)
    assert wire.receive(reader) == (Order.FORWARD, bytearray(b"abc"))
    assert wire.receive(reader) == (Order.CLOSE, bytearray())
    assert wire.receive(reader) is None
    os.close(reader)


def test_a_pipe_that_nobody_reads_is_not_waited_for_for_ever() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(TimeoutError):
        wire.send(writer, Order.FORWARD, bytes(1 << 20), timeout_s=0.05)
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        wire.send(writer, Order.FORWARD, b"", timeout_s=1)
    os.close(writer)

"""What rank 0 tells the others: frames on a pipe, and a batch as the bytes of its tensors.

A step's message is a few hundred bytes, so it is neither pickled nor sent through a collective, which would
have to be waited for with a time limit while an engine is idle. Knows nothing of models.
"""

from __future__ import annotations

import enum
import os
import select
import struct
import time

import torch
from torch import Tensor

from telechat.models.paged import PagedBatch
from telechat.ops.paged import Sequences

_FRAME = struct.Struct("<QQ")  # what to do, bytes that follow
_NUMBER = struct.Struct("<Q")
# T tokens, S sequences, how many of them decode, blocks of the longest table, L wanted rows, rotary runs,
# runs of adapters; most_new and longest, each preceded by whether it is known.
_BATCH = struct.Struct("<11Q")
# Stands for a run without an adapter; numbers of adapters are not negative.
_NO_ADAPTER = -1


class Order(enum.IntEnum):
    """What a rank is told to do."""

    SET_UP = 1
    CONNECT = 2
    ALLOCATE = 3
    FORWARD = 4
    HIDDEN_STATES = 5
    CLOSE = 6
    LOAD_ADAPTER = 7
    UNLOAD_ADAPTER = 8


def send(pipe: int, order: Order, payload: bytes, *, timeout_s: float) -> None:
    """Write a frame to a pipe that does not block.

    Raises:
        BrokenPipeError: nobody reads any more.
        TimeoutError: the reader has stopped taking bytes.
    """
    rest = memoryview(_FRAME.pack(order, len(payload)) + payload)
    deadline = time.monotonic() + timeout_s
    while rest:
        try:
            rest = rest[os.write(pipe, rest) :]
        except BlockingIOError:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("The other side of the pipe does not read.") from None
            select.select([], [pipe], [], left)


def receive(pipe: int) -> tuple[Order, bytearray] | None:
    """Read a frame from a pipe that blocks; None at its end."""
    head = _read(pipe, _FRAME.size)
    if head is None:
        return None
    order, size = _FRAME.unpack(head)
    payload = _read(pipe, size)
    return None if payload is None else (Order(order), payload)


def _read(pipe: int, size: int) -> bytearray | None:
    found = bytearray()
    while len(found) < size:
        part = os.read(pipe, min(size - len(found), 1 << 20))
        if not part:
            return None
        found += part
    return found


def with_number(number: int, content: bytes = b"") -> bytes:
    """A number, and bytes after it."""
    return _NUMBER.pack(number) + content


def split_number(payload: bytearray) -> tuple[int, bytes]:
    """What `with_number` joined."""
    return _NUMBER.unpack_from(payload)[0], bytes(payload[_NUMBER.size :])


def pack_batch(batch: PagedBatch, block_size: int) -> bytes:
    """A batch as bytes; of the block tables only what the longest sequence needs."""
    sequences = batch.sequences
    tables = sequences.block_tables
    if sequences.longest is not None:
        tables = tables[:, : -(-sequences.longest // block_size)]
    runs = torch.tensor(batch.rope_runs, dtype=torch.int64)
    adapters = torch.tensor(
        [(row, _NO_ADAPTER if number is None else number) for row, number in batch.adapter_runs],
        dtype=torch.int64,
    )
    head = _BATCH.pack(
        len(batch.token_ids_T),
        sequences.count,
        sequences.num_decoding,
        tables.shape[1],
        len(batch.logit_rows_L),
        len(batch.rope_runs),
        len(batch.adapter_runs),
        sequences.most_new is not None,
        sequences.most_new or 0,
        sequences.longest is not None,
        sequences.longest or 0,
    )
    tensors = (
        *(batch.token_ids_T, batch.positions_T, batch.slots_T, batch.logit_rows_L, runs, adapters),
        *(sequences.query_starts, sequences.kv_lengths, tables),
    )
    return head + b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)


def unpack_batch(payload: bytearray) -> PagedBatch:
    """The batch that `pack_batch` wrote; its tensors share the payload's memory."""
    T, S, num_decoding, num_blocks, L, R, N, has_most, most_new, has_longest, longest = _BATCH.unpack_from(
        payload
    )
    offset = _BATCH.size

    def taken(dtype: torch.dtype, *shape: int) -> Tensor:
        nonlocal offset
        count = torch.Size(shape).numel()
        if not count:
            return torch.empty(shape, dtype=dtype)
        tensor = torch.frombuffer(payload, dtype=dtype, count=count, offset=offset).view(shape)
        offset += count * dtype.itemsize
        return tensor

    token_ids, positions, slots = (taken(torch.int64, T) for _ in range(3))
    logit_rows, runs, adapters = taken(torch.int64, L), taken(torch.int64, R, 2), taken(torch.int64, N, 2)
    sequences = Sequences(
        taken(torch.int32, S + 1),
        taken(torch.int32, S),
        taken(torch.int32, S, num_blocks),
        most_new if has_most else None,
        longest if has_longest else None,
        num_decoding=num_decoding,
    )
    rope_runs = [(row, length) for row, length in runs.tolist()]
    adapter_runs = [(row, None if number == _NO_ADAPTER else number) for row, number in adapters.tolist()]
    return PagedBatch(token_ids, positions, rope_runs, slots, sequences, logit_rows, adapter_runs)

"""Decoding steps of a few padded sizes, each recorded when it first occurs.

Knows sizes, padding and the tensors that a recording reads; nothing of what a step computes. Shapes: B
sequences after padding, W blocks of a table, d head dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from telechat.models.paged import PagedBatch
from telechat.ops.fused import Recorder, Replay
from telechat.ops.paged import Sequences

log = logging.getLogger(__name__)

# Powers of two, then steps of 16: at most 15 rows of a step are padding.
_SMALL_SIZES = (1, 2, 4, 8, 16)
_STEP = 16
_MOST_SEQUENCES = 256
# Kernels are laid out for the longest sequence: recordings differ by it in powers of two from here on.
_SHORTEST = 512


@dataclass(frozen=True)
class Inputs:
    """What a step reads, on the device; `wanted_L` None stands for all rows."""

    token_ids_T: Tensor
    cos_Td: Tensor
    sin_Td: Tensor
    slots_T: Tensor
    sequences: Sequences
    wanted_L: Tensor | None


def padded_size(num_sequences: int) -> int | None:
    """The size a step of so many sequences is padded to, or None when it is too large to be recorded."""
    for size in _SMALL_SIZES:
        if num_sequences <= size:
            return size
    size = -(-num_sequences // _STEP) * _STEP
    return size if size <= _MOST_SEQUENCES else None


def padded_length(longest: int, most_tokens: int) -> int:
    """The length that kernels are laid out for when the longest sequence has `longest` tokens."""
    length = _SHORTEST
    while length < longest:
        length *= 2
    return min(length, most_tokens)


class Recordings:
    """Recordings of one function over one cache.

    Args:
        run: computes [B, V] from the inputs of a step with one token of each sequence, all rows wanted.
        padding_block: a block that belongs to no sequence.
        most_tokens: longer sequences are not recorded.
    """

    def __init__(
        self,
        recorder: Recorder,
        run: Callable[[Inputs], Tensor],
        *,
        device: torch.device,
        head_dim: int,
        block_size: int,
        padding_block: int,
        most_tokens: int,
    ) -> None:
        self._recorder = recorder
        self._run = run
        self._block_size = block_size
        self._padding_block = padding_block
        self._width = -(-most_tokens // block_size)
        self._most_tokens = self._width * block_size
        self._steps: dict[tuple[int, int], tuple[Replay, Tensor]] = {}
        rows = _MOST_SEQUENCES
        # One buffer on the host and one on the device for each dtype: two copies a step.
        self._host_long = torch.zeros(2, rows, dtype=torch.int64)
        self._host_int = torch.zeros(rows, self._width + 1, dtype=torch.int32)
        self._long, self._int = self._host_long.to(device), self._host_int.to(device)
        self._lengths = torch.zeros(rows, dtype=torch.int32, device=device)
        self._tables = torch.zeros(rows, self._width, dtype=torch.int32, device=device)
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._cos, self._sin = (torch.zeros(rows, head_dim, device=device) for _ in range(2))

    def takes(self, batch: PagedBatch) -> bool:
        """Whether this step can be replayed: a new token of each sequence, not too many nor too long."""
        sequences = batch.sequences
        longest = sequences.longest
        return (
            sequences.most_new == 1
            and longest is not None
            and longest <= self._most_tokens
            and sequences.count == len(batch.token_ids_T)
            and padded_size(sequences.count) is not None
        )

    def run(self, batch: PagedBatch, cos_Td: Tensor, sin_Td: Tensor) -> Tensor:
        """The wanted rows of the result; valid until the next call."""
        count, longest = batch.sequences.count, batch.sequences.longest
        size = padded_size(count)
        assert size is not None and longest is not None
        self._fill(batch, cos_Td, sin_Td, size)
        key = (size, padded_length(longest, self._most_tokens))
        if key not in self._steps:
            log.info("recording a step of %d sequences of up to %d tokens", *key)
            inputs = self._inputs(*key)
            self._steps[key] = self._recorder.record(lambda: self._run(inputs))
        replay, result = self._steps[key]
        replay()
        wanted = batch.logit_rows_L
        if torch.equal(wanted, torch.arange(count)):
            return result[:count]
        return result[wanted.to(result.device)]

    def _fill(self, batch: PagedBatch, cos_Td: Tensor, sin_Td: Tensor, size: int) -> None:
        """Write a step into the tensors that recordings read. Padding rows are sequences of one token."""
        sequences = batch.sequences
        count = sequences.count
        width = min(sequences.block_tables.shape[1], self._width)
        longs, ints = self._host_long, self._host_int
        longs[0, :count] = batch.token_ids_T
        longs[0, count:size] = 0
        longs[1, :count] = batch.slots_T
        longs[1, count:size] = self._padding_block * self._block_size
        ints[:count, 0] = sequences.kv_lengths
        ints[count:size, 0] = 1
        ints[:count, 1 : width + 1] = sequences.block_tables[:, :width]
        ints[count:size, 1] = self._padding_block
        self._long.copy_(longs)
        self._int[:size].copy_(ints[:size])
        self._lengths[:size].copy_(self._int[:size, 0])
        self._tables[:size].copy_(self._int[:size, 1:])
        self._cos[:count].copy_(cos_Td)
        self._sin[:count].copy_(sin_Td)

    def _inputs(self, size: int, length: int) -> Inputs:
        """The tensors that the recording of a size reads."""
        sequences = Sequences(
            self._starts[: size + 1], self._lengths[:size], self._tables[:size], most_new=1, longest=length
        )
        cos, sin = self._cos[:size], self._sin[:size]
        return Inputs(self._long[0, :size], cos, sin, self._long[1, :size], sequences, None)

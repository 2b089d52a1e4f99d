"""Decoding steps of a few padded sizes, each recorded when it first occurs, and begun early if possible.

A recording reads one row of integers that a step is sent as: per sequence its token, position, place in the
cache, length and blocks. Rotary rows are looked up inside. While the host still waits for a step's tokens,
the next step can be queued behind them on the device (`run_ahead`): each sequence again, one token longer.
If the next batch is that, or has some of its sequences, its results are there already; if not, nothing is
lost but the device's time: keys written early lie where the sequence's own next token will be written.
Knows nothing of what a step computes. Shapes: B sequences after padding, W blocks of a table, L wanted rows,
V vocabulary, d head dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from telechat.device import HostCopy, Staging
from telechat.layers.rotary import RotaryTables
from telechat.models.paged import PagedBatch
from telechat.ops.fused import Recorder, Replay
from telechat.ops.paged import Sequences

log = logging.getLogger(__name__)

Integers = npt.NDArray[np.int32]

# Powers of two, then steps of 16: at most 15 rows of a step are padding.
_SMALL_SIZES = (1, 2, 4, 8, 16)
_STEP = 16
_MOST_SEQUENCES = 256
# Kernels are laid out for the longest sequence: recordings differ by it in powers of two from here on.
_SHORTEST = 512
# Of each sequence, besides its blocks: token, position, place, length.
_FACTS = 4


@dataclass(frozen=True)
class Inputs:
    """What a step reads, on the device; `wanted_L` None stands for all rows."""

    token_ids_T: Tensor
    cos_Td: Tensor
    sin_Td: Tensor
    slots_T: Tensor
    sequences: Sequences
    wanted_L: Tensor | None


class Key(NamedTuple):
    """What recordings differ by: rows, and tokens of the longest sequence that kernels are laid out for."""

    size: int
    length: int


@dataclass(frozen=True)
class _Step:
    """One new token of each of some sequences, on the host.

    Attributes:
        ids, slots, lengths: [count], the new token counted; its position is length - 1.
        tables: [count, blocks of the longest]; what is behind a sequence's blocks may be anything.
        num_blocks: [count], of each sequence.
    """

    ids: Integers
    slots: Integers
    lengths: Integers
    tables: Integers
    num_blocks: Integers

    @property
    def count(self) -> int:
        return len(self.slots)

    def one_later(self, block_size: int) -> _Step | None:
        """Each sequence with one token more, whose id is not known yet; None if one has no place for it."""
        if (self.lengths >= self.num_blocks * block_size).any():
            return None
        rows = np.arange(self.count)
        blocks = self.tables[rows, self.lengths // block_size]
        slots = blocks * block_size + self.lengths % block_size
        return _Step(np.zeros_like(self.ids), slots, self.lengths + 1, self.tables, self.num_blocks)

    def rows_in(self, other: _Step, block_size: int) -> Integers | None:
        """Where in `other` each of these sequences is with the same length and blocks; None if one is not."""
        places = {slot: row for row, slot in enumerate(other.slots.tolist())}
        found = [places.get(slot, -1) for slot in self.slots.tolist()]
        rows = np.array(found, np.int32)
        if min(found) < 0 or (other.lengths[rows] != self.lengths).any():
            return None
        width = min(self.tables.shape[1], other.tables.shape[1])
        is_read = np.arange(width) < -(-self.lengths[:, None] // block_size)
        differs = self.tables[:, :width] != other.tables[rows, :width]
        return None if (differs & is_read).any() else rows


@dataclass(frozen=True)
class _Ahead:
    """A step that was begun before its tokens were known."""

    step: _Step
    chosen: HostCopy


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
        rotary: the model's; steps are recorded with the table for `table_length` tokens.
        padding_block: a block that belongs to no sequence.
        most_tokens: longer sequences are not recorded.
        result_width, dtype: V and the dtype of what `run` returns.
    """

    def __init__(
        self,
        recorder: Recorder,
        run: Callable[[Inputs], Tensor],
        *,
        device: torch.device,
        rotary: RotaryTables,
        table_length: int,
        block_size: int,
        padding_block: int,
        most_tokens: int,
        result_width: int,
        dtype: torch.dtype,
    ) -> None:
        self._recorder = recorder
        self._run = run
        self._block_size = block_size
        self._padding_block = padding_block
        self._most_tokens = most_tokens
        self._stretch_of = rotary.settings.stretch
        self._stretch = rotary.settings.stretch(table_length)
        self._cos, self._sin = rotary.rows(torch.arange(most_tokens, device=device), table_length)
        self._replays: dict[Key, Replay] = {}
        widest = -(-most_tokens // block_size)
        self._staging = Staging(_MOST_SEQUENCES * (_FACTS + widest), device)
        self._starts = torch.arange(_MOST_SEQUENCES + 1, dtype=torch.int32, device=device)
        # One for all sizes: each recording's own would stay in memory with it.
        self._result = torch.zeros(_MOST_SEQUENCES, result_width, dtype=dtype, device=device)
        self._last: _Step | None = None
        self._ahead: _Ahead | None = None

    def takes(self, batch: PagedBatch) -> bool:
        """Whether this step can be replayed: one new token of each sequence, not too many nor too long."""
        sequences = batch.sequences
        longest = sequences.longest
        lengths = [length for _, length in batch.rope_runs]
        return (
            sequences.most_new == 1
            and longest is not None
            and longest <= self._most_tokens
            and sequences.count == len(batch.token_ids_T)
            and padded_size(sequences.count) is not None
            # Longer texts never stretch less, so that the two ends speak for all between.
            and self._stretch_of(min(lengths)) == self._stretch_of(max(lengths)) == self._stretch
        )

    def forget(self) -> None:
        """A step was run that is not recorded: the next one does not follow on what is known here."""
        self._last = self._ahead = None

    def run(self, batch: PagedBatch) -> Tensor:
        """The wanted rows of the result, [L, V]; valid until the next call."""
        step = _step_of(batch, self._block_size)
        rows = self._rows_done(step)
        if rows is None:
            key = self._key(step)
            self._send(step, key)
            self._replay(key)
            rows = np.arange(step.count, dtype=np.int32)
        wanted = batch.logit_rows_L.numpy()
        are_all_wanted = np.array_equal(wanted, np.arange(step.count))
        self._last = step if are_all_wanted else None
        rows = rows if are_all_wanted else rows[wanted]
        if np.array_equal(rows, np.arange(len(rows))):
            return self._result[: len(rows)]
        return self._result[torch.from_numpy(rows).to(self._result.device)]

    def run_ahead(self, chosen: HostCopy) -> None:
        """As `RunsAhead.run_ahead`."""
        last = self._last
        if last is None or len(chosen.source) != last.count:
            return
        step = last.one_later(self._block_size)
        if step is None or int(step.lengths.max()) > self._most_tokens:
            return
        key = self._key(step)
        self._send(step, key)
        # Where there is no token, any will do: the sequence ends.
        self._staging.device[: step.count].copy_(chosen.source.clamp(min=0))
        self._replay(key)
        self._ahead = _Ahead(step, chosen)

    def _rows_done(self, step: _Step) -> Integers | None:
        """The rows of the result that are this step's, where it has been begun already."""
        ahead, self._ahead = self._ahead, None
        rows = None if ahead is None else step.rows_in(ahead.step, self._block_size)
        if ahead is None or rows is None:
            return None
        return rows if (ahead.chosen.values().numpy()[rows] == step.ids).all() else None

    def _key(self, step: _Step) -> Key:
        size = padded_size(step.count)
        assert size is not None
        return Key(size, padded_length(int(step.lengths.max()), self._most_tokens))

    def _width(self, key: Key) -> int:
        """Blocks of a table."""
        return -(-key.length // self._block_size)

    def _send(self, step: _Step, key: Key) -> None:
        """Bring a step to where recordings read. Padding rows are sequences of one token."""
        count, size, width = step.count, key.size, self._width(key)
        total = size * (_FACTS + width)
        self._staging.wait()
        numbers = self._staging.host.numpy()[:total]
        facts = numbers[: _FACTS * size].reshape(_FACTS, size)
        tables = numbers[_FACTS * size :].reshape(size, width)
        facts[:, count:] = [[0], [0], [self._padding_block * self._block_size], [1]]
        tables[count:, 0] = self._padding_block
        for fact, values in zip(facts, (step.ids, step.lengths - 1, step.slots, step.lengths), strict=True):
            fact[:count] = values
        known = min(width, step.tables.shape[1])
        tables[:count, :known] = step.tables[:, :known]
        self._staging.send(total)

    def _replay(self, key: Key) -> None:
        if key not in self._replays:
            log.info("recording a step of %d sequences of up to %d tokens", *key)
            numbers = self._staging.device[: key.size * (_FACTS + self._width(key))]
            ids, positions, slots, lengths = numbers[: _FACTS * key.size].view(_FACTS, key.size)
            tables = numbers[_FACTS * key.size :].view(key.size, -1)
            starts = self._starts[: key.size + 1]
            sequences = Sequences(starts, lengths, tables, most_new=1, longest=key.length)

            def run() -> None:
                cos, sin = (table.index_select(0, positions) for table in (self._cos, self._sin))
                inputs = Inputs(ids, cos, sin, slots, sequences, None)
                self._result[: key.size].copy_(self._run(inputs))

            self._replays[key] = self._recorder.record(run)
        self._replays[key]()


def _step_of(batch: PagedBatch, block_size: int) -> _Step:
    """A batch of one token of each sequence. Copies what the batch's maker will write into again."""
    sequences = batch.sequences
    lengths = sequences.kv_lengths.numpy().copy()
    needed = -(-lengths // block_size)
    return _Step(
        batch.token_ids_T.numpy().astype(np.int32),
        batch.slots_T.numpy().astype(np.int32),
        lengths,
        sequences.block_tables.numpy().copy(),
        needed if sequences.num_blocks is None else np.array(sequences.num_blocks, np.int32),
    )

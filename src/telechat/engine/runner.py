"""Turns the work of a step into one batch for an executor.

Knows requests' tokens and blocks, and how a batch lies in memory; knows nothing of queues, sampling or text,
nor how a model computes. Shapes: L rows whose results are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from telechat.engine.work import Work
from telechat.models.paged import Executor, PagedBatch
from telechat.ops.paged import Sequences

# The block table grows from here, twofold.
_FIRST_ROWS = 16
_FIRST_BLOCKS = 64

Piece = tuple[int, int, int]  # number of the work, start, stop


class Runner:
    """An executor and the block tables of the requests that run.

    Args:
        executor: its cache is made here, with `num_blocks` blocks.
        has_adapters: requests' adapters are this model's; False for a model that only guesses.
    """

    def __init__(
        self, executor: Executor, *, num_blocks: int, block_size: int, has_adapters: bool = True
    ) -> None:
        self.executor = executor
        self._has_adapters = has_adapters
        self.block_size = block_size
        self._tables = np.zeros((_FIRST_ROWS, _FIRST_BLOCKS), dtype=np.int32)
        # What each row holds: a decoding request's row is written once a block, not once a token.
        self._written: list[list[int]] = [[] for _ in range(_FIRST_ROWS)]
        executor.allocate(num_blocks, block_size)

    def logits(self, works: Sequence[Work]) -> Tensor:
        """fp32 [L, V] on the executor's device: the wanted rows, in the order of works and tokens."""
        return self.executor.forward(self.batch(works))

    def hidden_states(self, works: Sequence[Work]) -> Tensor:
        """As `logits`, but final hidden states, fp32 [L, hidden]."""
        return self.executor.hidden_states(self.batch(works))

    def batch(self, works: Sequence[Work]) -> PagedBatch:
        """The batch of these works. Valid until the next call.

        For an executor that computes by kind: answers' tokens first, then prompts'. A work with both is two
        sequences: an answer's tokens that are computed again are computed as they were when they were new.
        """
        size = self.block_size
        is_adapted = self._has_adapters and any(work.request.adapter is not None for work in works)
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        wanted: list[list[int]] = [[] for _ in works]
        starts, lengths = [0], []
        runs: list[tuple[int, int]] = []
        num_blocks: list[int] = []
        most_new = 0
        pieces, num_decoding = self._cut(works, by_adapter=is_adapted)
        self._make_room(len(pieces), max(len(work.request.block_table) for work in works))
        for row, (index, start, stop) in enumerate(pieces):
            request, _, _, num_logits, rope_length = work = works[index]
            table = request.block_table
            ids += request.tokens(start, stop)
            if stop - start == 1:
                positions.append(start)
                slots.append(table[start // size] * size + start % size)
            else:
                positions += range(start, stop)
                slots += _slots(table, size, start, stop)
            end = len(ids)
            if num_logits:
                count = min(num_logits - (work.stop - stop), stop - start)
                wanted[index] = [*range(end - count, end), *wanted[index]]
            starts.append(end)
            lengths.append(stop)
            if runs and runs[-1][1] == rope_length:
                runs.pop()
            runs.append((end, rope_length))
            most_new = max(most_new, stop - start)
            num_blocks.append(len(table))
            self._write(row, table)
        sequences = Sequences(
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(lengths, dtype=torch.int32),
            torch.from_numpy(self._tables[: len(pieces)]),
            most_new,
            max(lengths),
            num_blocks=num_blocks,
            num_decoding=num_decoding,
        )
        return PagedBatch(
            torch.tensor(ids),
            torch.tensor(positions),
            runs,
            torch.tensor(slots),
            sequences,
            torch.tensor(list(chain.from_iterable(wanted)), dtype=torch.int64),
            _adapter_runs(pieces, works, starts) if is_adapted else (),
        )

    def _cut(self, works: Sequence[Work], *, by_adapter: bool) -> tuple[list[Piece], int]:
        """Works in the order and the pieces that the executor takes; how many of the first are of answers."""
        if self.executor.computes_by_kind:
            pieces, num_decoding = _by_kind(works)
        else:
            pieces, num_decoding = [(index, work.start, work.stop) for index, work in enumerate(works)], 0
        if by_adapter:
            pieces = _by_adapter(pieces[:num_decoding], works) + _by_adapter(pieces[num_decoding:], works)
        return pieces, num_decoding

    def _make_room(self, num_rows: int, num_blocks: int) -> None:
        """Let the table have at least so many rows and columns."""
        rows, width = self._tables.shape
        if num_rows > rows or num_blocks > width:
            rows, width = max(num_rows, 2 * rows), max(num_blocks, 2 * width)
            self._tables = np.zeros((rows, width), dtype=np.int32)
            self._written = [[] for _ in range(rows)]

    def _write(self, row: int, table: list[int]) -> None:
        if self._written[row] != table:
            self._tables[row, : len(table)] = table
            self._written[row] = table.copy()


def _by_adapter(pieces: list[Piece], works: Sequence[Work]) -> list[Piece]:
    """Pieces of one adapter side by side, those without any first."""

    def order(piece: Piece) -> int:
        number = works[piece[0]].request.adapter
        return -1 if number is None else number

    return sorted(pieces, key=order)


def _adapter_runs(
    pieces: Sequence[Piece], works: Sequence[Work], starts: Sequence[int]
) -> list[tuple[int, int | None]]:
    """`PagedBatch.adapter_runs` of pieces whose first rows, and the end of the last, are `starts`."""
    runs: list[tuple[int, int | None]] = []
    for (index, _, _), end in zip(pieces, starts[1:], strict=True):
        number = works[index].request.adapter
        if runs and runs[-1][1] == number:
            runs.pop()
        runs.append((end, number))
    return runs


def _by_kind(works: Sequence[Work]) -> tuple[list[Piece], int]:
    """Works cut where a prompt ends, answers first; how many are those."""
    answers: list[Piece] = []
    prompts: list[Piece] = []
    for index, (request, start, count, _, _) in enumerate(works):
        num_prompt, stop = len(request.prompt_token_ids), start + count
        if start >= num_prompt:
            answers.append((index, start, stop))
        elif stop <= num_prompt:
            prompts.append((index, start, stop))
        else:
            prompts.append((index, start, num_prompt))
            answers.append((index, num_prompt, stop))
    return answers + prompts, len(answers)


def _slots(table: Sequence[int], block_size: int, start: int, stop: int) -> list[int]:
    """Places in the cache of a sequence's tokens start .. stop - 1."""
    slots: list[int] = []
    while start < stop:
        index, offset = divmod(start, block_size)
        count = min(block_size - offset, stop - start)
        first = table[index] * block_size + offset
        slots += range(first, first + count)
        start += count
    return slots

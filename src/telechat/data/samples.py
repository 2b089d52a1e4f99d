"""Samples ready to be trained on: packed conversations as padded arrays with shifted targets.

Conversations that share a sample do not see one another: positions restart, segments differ, and no token is
predicted across a border. Which samples form a batch is decided elsewhere; nothing here is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telechat.data.accounting import Accounting
from telechat.data.origins import Origins
from telechat.data.sequences import Sequences

IGNORED = -100
PADDING_SEGMENT = -1


@dataclass(frozen=True)
class BatchArrays:
    """B samples of S places; the fields of `telechat.train.batch.Batch`.

    Attributes:
        ids: int64 [B, S].
        positions: int64 [B, S], from 0 in every conversation; 0 in padding.
        segments: int32 [B, S], number of the conversation within its sample; -1 in padding.
        targets: int64 [B, S], the token to predict AT this place (already shifted); -100 for none.
        weights: float32 [B, S] that scale the losses of `targets`; None for all 1.
        is_packed: some row holds more than one conversation.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32] | None
    is_packed: bool


@dataclass(frozen=True)
class SampleSet:
    """All samples of a run.

    `len(samples)`, `samples.lengths` and `samples.batch([3, 8], pad_id=3)` are what a training loop needs.

    Attributes:
        sequences: every conversation once, in the order read.
        members: int64 [members]; sample i holds the sequences members[starts[i]:starts[i + 1]], a sequence
            that is used twice occurs twice.
        starts: int64 [samples + 1].
        accounting: where every row and token went.
        origins: the rows that each sequence was made of.
    """

    sequences: Sequences
    members: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    accounting: Accounting
    origins: Origins

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> list[int]:
        """Tokens per sample, without padding."""
        return self._per_sample(self.sequences.lengths)

    @property
    def num_targets(self) -> list[int]:
        """Targets per sample."""
        return self._per_sample(self.sequences.num_targets)

    def members_of(self, sample: int) -> npt.NDArray[np.int64]:
        """Numbers of the sequences in a sample, int64 [conversations]."""
        return self.members[int(self.starts[sample]) : int(self.starts[sample + 1])]

    def describe(self, samples: Sequence[int]) -> str:
        """The rows that samples were made of, by file and line."""
        return self.origins.describe(int(index) for sample in samples for index in self.members_of(sample))

    def batch(
        self, rows: Sequence[int], *, pad_id: int, num_rows: int | None = None, length: int | None = None
    ) -> BatchArrays:
        """The samples `rows` as arrays, padded on the right.

        Args:
            rows: sample numbers.
            pad_id: what stands in padding.
            num_rows: B, if larger than the rows (the rest is padding).
            length: S, if larger than the longest row.
        """
        members = [self.members_of(row) for row in rows]
        return fill_batch(self.sequences, members, pad_id=pad_id, num_rows=num_rows, length=length)

    def _per_sample(self, per_sequence: npt.NDArray[np.int64]) -> list[int]:
        sums = np.concatenate([[0], np.cumsum(per_sequence[self.members])])
        counts: list[int] = (sums[self.starts[1:]] - sums[self.starts[:-1]]).tolist()
        return counts


def fill_batch(
    sequences: Sequences,
    members: Sequence[Sequence[int] | npt.NDArray[np.int64]],
    *,
    pad_id: int,
    num_rows: int | None = None,
    length: int | None = None,
) -> BatchArrays:
    """Rows of sequences as one batch; each row holds the sequences named for it, one after another.

    Args:
        members: sequence numbers per row.
        pad_id, num_rows, length: as `SampleSet.batch`.

    Raises:
        AssertionError: `num_rows` or `length` is smaller than what must fit.
    """
    lengths = [sum(sequences.length_of(int(index)) for index in row) for row in members]
    shape = (max(num_rows or 0, len(members)), max(length or 0, max(lengths, default=0)))
    assert num_rows is None or num_rows >= len(members), f"{len(members)} samples in {num_rows} rows"
    assert length is None or length >= max(lengths, default=0), f"{max(lengths)} tokens in {length} places"
    ids = np.full(shape, pad_id, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    segments = np.full(shape, PADDING_SEGMENT, dtype=np.int32)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    weights = None if sequences.weights is None else np.ones(shape, dtype=np.float32)
    for row, indices in enumerate(members):
        start = 0
        for segment, index in enumerate(indices):
            span = sequences.span(int(index))
            tokens = sequences.ids[span]
            end = start + len(tokens)
            ids[row, start:end] = tokens
            positions[row, start:end] = np.arange(len(tokens))
            segments[row, start:end] = segment
            # The last place predicts nothing: what follows belongs to somebody else.
            learnt = sequences.learnt[span][1:]
            targets[row, start : end - 1] = np.where(learnt, tokens[1:], IGNORED)
            if weights is not None and sequences.weights is not None:
                weights[row, start : end - 1] = sequences.weights[span][1:]
            start = end
    is_packed = any(len(indices) > 1 for indices in members)
    return BatchArrays(ids, positions, segments, targets, weights, is_packed)

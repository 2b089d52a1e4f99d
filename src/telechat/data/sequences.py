"""Many token sequences end to end in a few arrays, with the marks of what is learnt."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True)
class Encoded:
    """One sequence.

    Attributes:
        ids: token ids.
        learnt: for each, whether it is a target.
        weights: for each, what scales its loss; None for all 1.
    """

    ids: Sequence[int]
    learnt: Sequence[bool]
    weights: Sequence[float] | None = None

    @property
    def num_targets(self) -> int:
        """Tokens that are learnt; the first one cannot be, since nothing stands before it."""
        return sum(self.learnt[1:])


@dataclass(frozen=True)
class Sequences:
    """All sequences, end to end; the arrays may be memory-mapped.

    Attributes:
        ids: int32 [total tokens].
        learnt: bool [total tokens]; True where the token itself is a target. The first token of a sequence
            may be marked; nothing predicts it, so it never is a target.
        offsets: int64 [sequences + 1]; sequence i is ids[offsets[i]:offsets[i + 1]].
        weights: float32 [total tokens], what scales the loss of each token; None for all 1.
    """

    ids: npt.NDArray[np.int32]
    learnt: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per sequence, int64 [sequences]."""
        return np.diff(self.offsets)

    @property
    def num_targets(self) -> npt.NDArray[np.int64]:
        """Targets per sequence, int64 [sequences]; a first token is none."""
        before = np.concatenate([[0], np.cumsum(self.learnt, dtype=np.int64)])
        starts, ends = self.offsets[:-1], self.offsets[1:]
        # An empty sequence has no first token to leave out.
        starts_inside = np.minimum(starts + 1, ends)
        counts: npt.NDArray[np.int64] = before[ends] - before[starts_inside]
        return counts

    def length_of(self, index: int) -> int:
        """Tokens of sequence `index`."""
        return int(self.offsets[index + 1] - self.offsets[index])

    def span(self, index: int) -> slice:
        """Where sequence `index` lies in the arrays."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def take(self, numbers: npt.NDArray[np.int64]) -> Sequences:
        """The named sequences in that order, as often as they are named, in arrays of their own."""
        spans = [self.span(number) for number in numbers.tolist()]
        lengths = self.lengths[numbers]
        return Sequences(
            _joined(self.ids, spans),
            _joined(self.learnt, spans),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            None if self.weights is None else _joined(self.weights, spans),
        )


def _joined(values: npt.NDArray[S], spans: list[slice]) -> npt.NDArray[S]:
    return np.concatenate([values[:0], *(values[span] for span in spans)])


class SequenceBuilder:
    """Collects sequences without a Python object per token (4 to 9 bytes each)."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._learnt = bytearray()
        self._weights: array[float] | None = None
        self._offsets = array("q", [0])

    def add(self, sequence: Encoded) -> int:
        """Append one; returns its number."""
        if sequence.weights is not None and self._weights is None:
            self._weights = array("f", [1.0]) * len(self._ids)
        self._ids.extend(sequence.ids)
        self._learnt.extend(map(bool, sequence.learnt))
        if self._weights is not None:
            self._weights.extend(sequence.weights or [1.0] * len(sequence.ids))
        self._offsets.append(len(self._ids))
        return len(self._offsets) - 2

    def finish(self) -> Sequences:
        """All of them as arrays."""
        weights = None if self._weights is None else np.frombuffer(self._weights, dtype=np.float32)
        return Sequences(
            np.frombuffer(self._ids, dtype=np.int32),
            np.frombuffer(self._learnt, dtype=np.bool_),
            np.frombuffer(self._offsets, dtype=np.int64),
            weights,
        )

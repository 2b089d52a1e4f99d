"""Which rows of which files each sequence was made of, so that messages can name them. Knows no tokens."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telechat.data.rows import Row

_NAMED = 32  # rows that a message names


@dataclass(frozen=True)
class Origins:
    """The rows behind sequences.

    Attributes:
        files: paths as they were given.
        rows: int64 [entries, 2], number of the file and line.
        starts: int64 [sequences + 1]; sequence i was made of rows[starts[i]:starts[i + 1]].
    """

    files: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def describe(self, sequences: Iterable[int]) -> str:
        """The rows of some sequences in words, each once: `a.jsonl lines 3, 9; b.jsonl line 1`."""
        rows = sorted({row for number in sequences for row in self._rows_of(number)})
        shown: dict[str, list[int]] = {}
        for file, line in rows[:_NAMED]:
            shown.setdefault(self.files[file], []).append(line)
        parts = [
            f"{file} line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}"
            for file, lines in shown.items()
        ]
        more = [f"{len(rows) - _NAMED} more rows"] if len(rows) > _NAMED else []
        return "; ".join(parts + more)

    def take(self, numbers: npt.NDArray[np.int64]) -> Origins:
        """Those of the named sequences, in that order, as often as they are named."""
        found = [self.rows[int(self.starts[n]) : int(self.starts[n + 1])] for n in numbers.tolist()]
        starts = np.concatenate([[0], np.cumsum([len(rows) for rows in found])]).astype(np.int64)
        return Origins(self.files, np.concatenate([self.rows[:0], *found]), starts)

    def _rows_of(self, sequence: int) -> list[tuple[int, int]]:
        found = self.rows[int(self.starts[sequence]) : int(self.starts[sequence + 1])]
        return [(int(file), int(line)) for file, line in found]


class OriginsBuilder:
    """Collects the rows of sequences in the order of the sequences."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._rows = array("q")
        self._starts = array("q", [0])

    def add(self, rows: Iterable[Row]) -> None:
        """Note what the next sequence was made of."""
        for row in rows:
            self._rows.extend((self._files.setdefault(str(row.path), len(self._files)), row.line))
        self._starts.append(len(self._rows) // 2)

    def finish(self) -> Origins:
        """All of them as arrays."""
        rows = np.array(self._rows, dtype=np.int64).reshape(-1, 2)
        return Origins(tuple(self._files), rows, np.array(self._starts, dtype=np.int64))

"""Reads the records of files, and keeps the books while doing so."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from telechat.data.accounting import MALFORMED, Accounting
from telechat.data.files import read_file
from telechat.data.recognise import ROWS_LOOKED_AT, Recognised, recognise_rows
from telechat.data.records import Record
from telechat.data.rows import BadRow, Row, RowProblem
from telechat.data.sources import Source
from telechat.errors import ConfigError

log = logging.getLogger(__name__)

OnBadRow = Literal["skip", "stop"]
_BAD_ROWS_KEPT = 100
_BAD_ROWS_LOGGED = 10
_ROWS_PER_LINE_OF_LOG = 20_000


@dataclass(frozen=True)
class ReadRow:
    """A row, what it says, and whose family it is of."""

    row: Row
    record: Record


class Books:
    """Counts rows and tokens while files are read; `close` turns them into an `Accounting`."""

    def __init__(self) -> None:
        self.rows_read = 0
        self.tokens_read = 0
        self.rows_added: Counter[str] = Counter()
        self.tokens_added: Counter[str] = Counter()
        self.rows_dropped: Counter[str] = Counter()
        self.tokens_dropped: Counter[str] = Counter()
        self.bad_rows: list[BadRow] = []
        self.files: dict[str, str] = {}

    def drop(self, reason: str, tokens: int, *, rows: int = 1) -> None:
        """Note what is left out."""
        self.rows_dropped[reason] += rows
        self.tokens_dropped[reason] += tokens

    def add(self, reason: str, tokens: int, *, rows: int = 0) -> None:
        """Note what comes on top of what the files hold."""
        self.rows_added[reason] += rows
        self.tokens_added[reason] += tokens

    def close(
        self, *, rows_used: int, trained: int, in_samples: int, sequences: int, samples: int, max_length: int
    ) -> Accounting:
        """The accounts, given what was counted in the finished samples.

        Args:
            trained: targets.
            in_samples: tokens, targets included.
        """
        return Accounting(
            rows_read=self.rows_read,
            tokens_read=self.tokens_read,
            rows_added=_used(self.rows_added),
            tokens_added=_used(self.tokens_added),
            rows_dropped=_used(self.rows_dropped),
            tokens_dropped=_used(self.tokens_dropped),
            rows_used=rows_used,
            tokens_trained=trained,
            tokens_context=in_samples - trained,
            num_sequences=sequences,
            num_samples=samples,
            max_length=max_length,
            bad_rows=tuple(self.bad_rows),
            files=dict(self.files),
        )

    def nothing_left(self) -> ConfigError:
        """The error for files of which no row is usable."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in _used(self.rows_dropped).items())
        first = f" The first: {self.bad_rows[0]}" if self.bad_rows else ""
        return ConfigError(
            f"None of the {self.rows_read} rows can be trained on ({reasons or 'there are none'}).{first}",
            hint="Rows need an answer of the assistant and at most the longest length; "
            "telechat data inspect FILE shows them.",
        )


def _used(counter: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in counter.items() if count}


class RecordReader:
    """Reads files row by row; malformed rows stop it or are noted.

    Args:
        books: where rows are counted.
        on_bad_row: `stop` raises at the first malformed row, `skip` leaves it out and notes it.
    """

    def __init__(self, books: Books, on_bad_row: OnBadRow) -> None:
        self.books = books
        self.on_bad_row = on_bad_row
        self.recognised: dict[Path, Recognised] = {}

    def read(self, source: Source) -> Iterator[ReadRow]:
        """The records of a file.

        Raises:
            ConfigError: an unreadable or empty file, unknown rows, or (on_bad_row `stop`) a malformed row.
        """
        rows = read_file(source.path)
        looked_at = list(itertools.islice(rows, ROWS_LOOKED_AT))
        found = self.recognised[source.path] = recognise_rows(looked_at, source.path)
        self.books.files[str(source.path)] = str(found)
        for number, row in enumerate(itertools.chain(looked_at, rows), 1):
            if number % _ROWS_PER_LINE_OF_LOG == 0:
                log.info("%s: %d rows read", source.path, number)
            self.books.rows_read += 1
            if isinstance(row, BadRow):
                self.note(row)
                continue
            try:
                yield ReadRow(row, found.family.read(row.value))
            except RowProblem as problem:
                self.reject(row, problem)

    def reject(self, row: Row, problem: RowProblem) -> None:
        """A row that was read and turned out malformed later."""
        self.note(BadRow(row.path, row.line, str(problem)))

    def note(self, bad: BadRow) -> None:
        """Stop at a malformed row, or count it."""
        if self.on_bad_row == "stop":
            raise ConfigError(
                f"{bad}", hint="Correct the row, or leave such rows out with --on-bad-row skip."
            )
        self.books.drop(MALFORMED, 0)
        number = self.books.rows_dropped[MALFORMED]
        if number <= _BAD_ROWS_LOGGED:
            log.warning("left out: %s", bad)
        if number <= _BAD_ROWS_KEPT:
            self.books.bad_rows.append(bad)

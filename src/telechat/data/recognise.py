"""Finds out which family the rows of a file belong to, and says why.

The first row that any family knows decides; a later row of another kind is then a bad row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from telechat.data.families import (
    alpaca,
    messages,
    packed,
    preference,
    pretraining,
    sharegpt,
    telechat1,
    telechat2,
)
from telechat.data.records import Record
from telechat.data.rows import BadRow, Row
from telechat.errors import ConfigError

ROWS_LOOKED_AT = 100


@dataclass(frozen=True)
class Family:
    """One form of rows: `recognise` gives the reason or None, `read` the record or `RowProblem`."""

    name: str
    recognise: Callable[[Mapping[str, Any]], str | None]
    read: Callable[[Mapping[str, Any]], Record]


# Asked in this order: the more particular first, since rows may carry further fields.
FAMILIES: tuple[Family, ...] = tuple(
    Family(module.NAME, module.recognise, module.read)
    for module in (packed, preference, messages, sharegpt, telechat2, alpaca, telechat1, pretraining)
)


@dataclass(frozen=True)
class Recognised:
    """A family and the reason."""

    family: Family
    reason: str

    def __str__(self) -> str:
        return f"{self.family.name} rows (they have {self.reason})"


def recognise_row(row: Mapping[str, Any]) -> Recognised | None:
    """The family of one row; None when no family knows it."""
    for family in FAMILIES:
        reason = family.recognise(row)
        if reason is not None:
            return Recognised(family, reason)
    return None


def recognise_rows(rows: Iterable[Row | BadRow], path: object) -> Recognised:
    """The family of a file's rows.

    Args:
        rows: from its beginning; no more than the first hundred are looked at.
        path: the file, for messages.

    Raises:
        ConfigError: no rows, or none that any family knows.
    """
    first: Row | BadRow | None = None
    for number, row in enumerate(rows):
        if number == ROWS_LOOKED_AT:
            break
        first = first or row
        found = recognise_row(row.value) if isinstance(row, Row) else None
        if found is not None:
            return found
    if first is None:
        raise ConfigError(f"{path} holds no rows.", hint="Give a file with at least one row.")
    seen = (
        first.problem if isinstance(first, BadRow) else f"its fields are {', '.join(first.value) or 'none'}."
    )
    raise ConfigError(
        f"{path} holds no training rows that are known; line {first.line}: {seen}",
        hint=f"Known are {', '.join(family.name for family in FAMILIES)} (docs/training-data.md).",
    )

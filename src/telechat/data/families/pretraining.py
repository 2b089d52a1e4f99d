"""Pre-training rows: `{"text": "…"}`, or `{"data": "…"}` as TeleChat-PTD has it."""

from __future__ import annotations

from telechat.data.families.fields import RowValue, text_field
from telechat.data.records import Document

NAME = "pretraining"
_FIELDS = ("text", "data")


def recognise(row: RowValue) -> str | None:
    """Text under one of the names."""
    return next((f"the field {name} with text" for name in _FIELDS if isinstance(row.get(name), str)), None)


def read(row: RowValue) -> Document:
    """The text."""
    return Document(text_field(row, next((name for name in _FIELDS if name in row), "text")))

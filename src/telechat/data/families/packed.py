"""Rows that are encoded already: `input_ids`, with `labels` or `loss_mask`.

    {"input_ids": [6, 3921, …], "labels": [-100, …, 2], "weights": [1.0, …]}

Labels stand at the place of their own token, as everywhere in Hugging Face's and MindFormers' files; -100
marks what is not learnt. A row of a MindRecord file is one of these. Without either every token is learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from telechat.data.families.fields import RowValue, loss_weight
from telechat.data.records import TokenRow
from telechat.data.rows import RowProblem

NAME = "packed"
IGNORED = -100


def recognise(row: RowValue) -> str | None:
    """Token ids."""
    return "the field input_ids" if "input_ids" in row else None


def read(row: RowValue) -> TokenRow:
    """Ids and their marks."""
    ids = _integers(row, "input_ids")
    negative = [token_id for token_id in ids if token_id < 0]
    if not ids or negative:
        raise RowProblem(f"input_ids {f'holds {negative[0]}' if negative else 'is empty'}.")
    learnt: tuple[bool, ...] = (True,) * len(ids)
    if "labels" in row:
        labels = _integers(row, "labels")
        _same_length("labels", labels, ids)
        for place, (label, token_id) in enumerate(zip(labels, ids, strict=True)):
            if label not in (IGNORED, token_id):
                raise RowProblem(
                    f"label {place} is {label} and its token {token_id}; a label is its own token or -100."
                )
        learnt = tuple(label != IGNORED for label in labels)
    elif "loss_mask" in row:
        mask = _integers(row, "loss_mask")
        _same_length("loss_mask", mask, ids)
        learnt = tuple(mark != 0 for mark in mask)
    return TokenRow(ids, learnt, _weights(row, ids))


def _integers(row: RowValue, name: str) -> tuple[int, ...]:
    """A list or array of whole numbers."""
    value: Any = row.get(name)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list) or not all(isinstance(number, int) for number in value):
        raise RowProblem(f"the field {name} must be a list of whole numbers.")
    return tuple(value)


def _weights(row: RowValue, ids: tuple[int, ...]) -> tuple[float, ...] | None:
    """What scales the loss of each token."""
    value: Any = row.get("weights")
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None:
        return None
    if not isinstance(value, list):
        raise RowProblem("the field weights must be a list of numbers.")
    _same_length("weights", value, ids)
    return tuple(loss_weight(number, "one of the weights") for number in value)


def _same_length(name: str, values: Sequence[float], ids: tuple[int, ...]) -> None:
    if len(values) != len(ids):
        raise RowProblem(f"{name} has {len(values)} entries and input_ids {len(ids)}.")

"""Fields of a row with the type they must have; whatever is wrong is said in one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from telechat.data.rows import RowProblem

RowValue = Mapping[str, Any]
MOST_WEIGHT = 1_000_000  # what is more is a mistake, and would not survive fp16


def text_field(row: RowValue, name: str, *, default: str | None = None) -> str:
    """A field that must be text; a missing or null one is `default` where there is one.

    Raises:
        RowProblem: it is missing or no text.
    """
    value = row.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise RowProblem(f"the field {name} {_is(row, name)}; it must be text.")
    return value


def list_field(row: RowValue, name: str) -> list[Any]:
    """A field that must be a list with at least one element.

    Raises:
        RowProblem: it is missing, empty or no list.
    """
    value = row.get(name)
    if not isinstance(value, list):
        raise RowProblem(f"the field {name} {_is(row, name)}; it must be a list.")
    if not value:
        raise RowProblem(f"the field {name} is empty.")
    return value


def object_of(value: Any, what: str) -> Mapping[str, Any]:
    """`value`, which must be an object.

    Raises:
        RowProblem: it is none.
    """
    if not isinstance(value, Mapping):
        raise RowProblem(f"{what} is a {type(value).__name__}; it must be an object.")
    return value


def tools_field(row: RowValue) -> tuple[Mapping[str, Any], ...]:
    """The tools of a row: a list, or the JSON text of one (columns of a table hold text only).

    Raises:
        RowProblem: neither.
    """
    value = parsed_json(row.get("tools"), "tools") or []
    if not isinstance(value, list):
        raise RowProblem(f"the field tools is a {type(value).__name__}; it must be a list.")
    return tuple(object_of(tool, f"tool {number}") for number, tool in enumerate(value))


def parsed_json(value: Any, what: str) -> Any:
    """`value`, read as JSON where it is text; blank text is None.

    Raises:
        RowProblem: text that is not JSON.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowProblem(f"{what} is text that is not JSON: {error}.") from error


def loss_weight(value: Any, what: str) -> float:
    """A number that scales a loss.

    Raises:
        RowProblem: something else, or more than `MOST_WEIGHT`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST_WEIGHT:
        raise RowProblem(f"{what} is {value!r}; it must be a number from 0 to {MOST_WEIGHT:,}.")
    return float(value)


def _is(row: RowValue, name: str) -> str:
    if name not in row:
        return "is missing"
    value = row[name]
    return "is null" if value is None else f"is a {type(value).__name__}"

"""Nested sections of settings, as a YAML file gives them, with one value replaced."""

from __future__ import annotations

import copy
from typing import Any


def with_value(sections: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy in which the value or the whole section at the dotted `key` is another."""
    changed = copy.deepcopy(sections)
    *way, leaf = key.split(".")
    section = changed
    for word in way:
        section = section[word]
    section[leaf] = value
    return changed

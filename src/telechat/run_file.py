"""MindFormers' run files (`finetune_*.yaml`, `predict_*.yaml`): recognised, and read key by key.

A reader remembers what it was asked for, so that what has no meaning here can be told to the user. Knows
nothing of what the keys mean.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from telechat.errors import ConfigError

Number = TypeVar("Number", int, float)

# A key this like one that was asked for is taken for a slip of the pen.
_LIKENESS = 0.9


def is_run_file(raw: Mapping[str, Any]) -> bool:
    """Whether the contents of a YAML file are MindFormers', not settings of our own."""
    model = raw.get("model")
    return isinstance(model, Mapping) and isinstance(model.get("model_config"), Mapping)


class RunFile:
    """The values of a run file by dotted key: `parallel_config.model_parallel`.

    Args:
        raw: the file's contents.
        source: its name, for messages.
    """

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.source = source
        self._raw = raw
        self._asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value; the default where there is none, or an empty one."""
        self._asked.add(key)
        value: Any = self._raw
        for word in key.split("."):
            value = value.get(word) if isinstance(value, Mapping) else None
        return default if value is None or value == "" else value

    def number(self, key: str, default: Number) -> Number:
        """A number of the default's type.

        Raises:
            ConfigError: it is none.
        """
        value = self.get(key, default)
        kind = type(default)
        try:
            if isinstance(value, bool) or kind(float(value)) != float(value):
                raise ValueError
            return kind(float(value))
        except (TypeError, ValueError, OverflowError):
            wanted = "a whole number" if kind is int else "a number"
            raise ConfigError(f"{self.source}: {key} is {value!r}; it must be {wanted}.") from None

    def has(self, key: str) -> bool:
        """Whether the file names this key or section; does not count as asking for it."""
        value: Any = self._raw
        for word in key.split("."):
            if not isinstance(value, Mapping) or word not in value:
                return False
            value = value[word]
        return True

    def ignored(self) -> tuple[str, ...]:
        """Keys that nobody asked for; a section of which nothing was asked for is named as a whole.

        A key that looks like a misspelt one says so.
        """
        missing = [key for key in self._asked if not self.has(key)]
        told = []
        for key in self._unasked(self._raw, ""):
            meant = difflib.get_close_matches(key, missing, n=1, cutoff=_LIKENESS)
            told.append(f"{key} (did you mean {meant[0]}?)" if meant else key)
        return tuple(told)

    def _unasked(self, section: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for word, value in section.items():
            key = f"{prefix}{word}"
            if key in self._asked:
                continue
            if isinstance(value, Mapping) and any(asked.startswith(f"{key}.") for asked in self._asked):
                yield from self._unasked(value, f"{key}.")
            else:
                yield key

"""MindFormers' run files (`finetune_*.yaml`, `predict_*.yaml`): recognised, and read key by key.

A reader remembers what it was asked for, so that what has no meaning here can be told to the user. Knows
nothing of what the keys mean.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        """The value; the default where there is none, or an empty one.

        Raises:
            ConfigError: what should be a section is none.
        """
        self._asked.add(key)
        value: Any = self._raw
        words = key.split(".")
        for depth, word in enumerate(words):
            if value is None or value == "":
                return default
            if not isinstance(value, Mapping):
                raise self.wrong(".".join(words[:depth]), value, "a section of keys and values")
            value = value.get(word)
        return default if value is None or value == "" else value

    def text(self, key: str) -> str | None:
        """A text; None where there is none.

        Raises:
            ConfigError: it is none.
        """
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return value

    def flag(self, key: str) -> bool:
        """Whether something is on: true, or a list or section that says where; off without a value.

        Raises:
            ConfigError: it is neither.
        """
        value = self.get(key, False)
        if isinstance(value, Mapping | list):
            return any(value)
        if value not in (0, 1):
            raise self.wrong(key, value, "true or false")
        return bool(value)

    def number(self, key: str, default: Number) -> Number:
        """A number of the default's type.

        Raises:
            ConfigError: it is none.
        """
        return self.as_number(key, self.get(key, default), type(default))

    def numbers(self, key: str, default: Sequence[float] = ()) -> list[float]:
        """A list of numbers.

        Raises:
            ConfigError: it is none.
        """
        values = self.get(key, default)
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise self.wrong(key, values, "a list of numbers")
        return [self.as_number(f"{key}[{place}]", value, float) for place, value in enumerate(values)]

    def as_number(self, key: str, value: Any, kind: type[Number]) -> Number:
        """A value, also one in quotes, as a number.

        Args:
            key: where it stands.

        Raises:
            ConfigError: it is none.
        """
        try:
            if isinstance(value, bool) or kind(float(value)) != float(value):
                raise ValueError
            return kind(float(value))
        except (TypeError, ValueError, OverflowError):
            raise self.wrong(key, value, "a whole number" if kind is int else "a number") from None

    def wrong(self, key: str, value: Any, wanted: str) -> ConfigError:
        """The refusal of a value."""
        return ConfigError(
            f"{self.source}: {key} is {value!r}; it must be {wanted}.", hint="Correct it in the file."
        )

    def has(self, key: str) -> bool:
        """Whether the file gives this key or section a value; does not count as asking for it."""
        value: Any = self._raw
        for word in key.split("."):
            if not isinstance(value, Mapping) or word not in value:
                return False
            value = value[word]
        return value is not None

    def ignored(self, *, read_elsewhere: Iterable[str] = ()) -> tuple[str, ...]:
        """Keys that nobody asked for; a section of which nothing was asked for is named as a whole.

        A key that looks like a misspelt one says so.

        Args:
            read_elsewhere: keys that another reader of the same file asks for.
        """
        asked = self._asked | set(read_elsewhere)
        missing = sorted(key for key in asked if not self.has(key))
        told = []
        for key in _unasked(self._raw, "", asked):
            meant = difflib.get_close_matches(key, missing, n=1, cutoff=_LIKENESS)
            told.append(f"{key} (did you mean {meant[0]}?)" if meant else key)
        return tuple(told)


def _unasked(section: Mapping[str, Any], prefix: str, asked: set[str]) -> Iterator[str]:
    for word, value in section.items():
        key = f"{prefix}{word}"
        if key in asked:
            continue
        if isinstance(value, Mapping) and any(other.startswith(f"{key}.") for other in asked):
            yield from _unasked(value, f"{key}.", asked)
        else:
            yield key

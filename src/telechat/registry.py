"""Names a user may type, each bound to the place of its implementation.

Values are `"module:attribute"` and are imported only when asked for. The registry knows nothing about what it
holds; a broken import stays the import error it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from telechat.errors import UsageError


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str | None:
    """The known name most like `name`, or None when none is alike."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else None


def import_attribute(place: str) -> Any:
    """Import `"module:attribute"` and return the attribute."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


class Registry:
    """A fixed table from names to places.

    Args:
        kind: what the names are, for messages: "dataset format", "quantization method".
        places: name -> "module:attribute".
    """

    def __init__(self, kind: str, places: Mapping[str, str]) -> None:
        self.kind = kind
        self._places = dict(places)

    def names(self) -> tuple[str, ...]:
        """The known names, in the order they were given."""
        return tuple(self._places)

    def resolve(self, name: str) -> Any:
        """Import what `name` stands for. UsageError lists the known names when it is not one of them."""
        place = self._places.get(name)
        if place is None:
            raise UsageError(
                f"Unknown {self.kind} {name!r}.", hint=f"Choose one of: {', '.join(sorted(self._places))}."
            )
        return import_attribute(place)

"""Which files are read, and with what weight; a mixing file is the official one, `{"path": weight, …}`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from telechat.errors import ConfigError

_LARGEST_MIXING_FILE = 1 << 20


@dataclass(frozen=True)
class Source:
    """A file of rows and how many times it is used.

    Attributes:
        drawn_as: what its rows are drawn by, beside the seed: its name, and for further files of that name
            in other folders also which of them it is.
    """

    path: Path
    weight: float = 1.0
    drawn_as: str = ""


def read_sources(named: str | Path | Sequence[str | Path] | Mapping[str, float]) -> tuple[Source, ...]:
    """The files to read: one, several, several with weights, or a mixing file that names them.

    Paths in a mixing file count from the working directory, as in the original, or else from the file's own
    folder.

    Raises:
        ConfigError: none named, a file that is not there, or a weight that is no number from 0 on.
    """
    if isinstance(named, Mapping):
        sources = [_source(Path(path), weight, "the data sources") for path, weight in named.items()]
    elif isinstance(named, (str, Path)):
        sources = _from_path(Path(named))
    else:
        sources = [source for path in named for source in _from_path(Path(path))]
    if not sources:
        raise ConfigError("No training file is named.", hint="Name at least one file of rows.")
    seen: Counter[str] = Counter()
    named_apart = []
    for source in sources:
        name = source.path.name
        drawn_as = f"{name}/{seen[name]}" if seen[name] else name
        named_apart.append(replace(source, drawn_as=drawn_as))
        seen[name] += 1
    return tuple(named_apart)


def _from_path(path: Path) -> list[Source]:
    content = _mixing_content(path)
    if content is None:
        return [_source(path, 1.0, str(path))]
    sources = []
    for name, weight in content.items():
        beside = path.parent / name
        sources.append(_source(beside if not Path(name).exists() else Path(name), weight, str(path)))
    return sources


def _mixing_content(path: Path) -> dict[str, Any] | None:
    """The content of a mixing file; None for any other file."""
    if path.suffix != ".json" or not path.is_file() or path.stat().st_size > _LARGEST_MIXING_FILE:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:  # not JSON, or not text: the reader of rows will say what it is
        return None
    numbers = isinstance(content, dict) and all(isinstance(value, (int, float)) for value in content.values())
    return content if numbers and content else None


def _source(path: Path, weight: float, named_in: str) -> Source:
    if not path.exists():
        hint = None if Path(named_in).name == path.name else f"Correct the path in {named_in}."
        raise ConfigError(f"There is no training file {path}.", hint=hint)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise ConfigError(f"The weight of {path} is {weight!r}; it must be a number from 0 on.")
    return Source(path, float(weight))

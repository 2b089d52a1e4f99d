"""Adds up the time spent in functions, from outside, while a block runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Spent:
    """Seconds so far."""

    seconds: float = 0.0


@contextmanager
def watching(*places: tuple[Any, str]) -> Iterator[Spent]:
    """Replace (owner, name of a function) by timed ones, and put them back afterwards.

    A function that is called within another watched one is counted once.
    """
    spent = Spent()
    depth = 0

    def timed(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                if not depth:
                    spent.seconds += time.perf_counter() - start

        return call

    own = [(owner, name, vars(owner).get(name)) for owner, name in places]
    for owner, name in places:
        setattr(owner, name, timed(getattr(owner, name)))
    try:
        yield spent
    finally:
        for owner, name, before in own:
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

"""What a check is, and how it says what it found. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

Result = Literal["passed", "failed", "skipped"]
Api = TypeVar("Api")


class FailedError(Exception):
    """The server does something else than its clients expect; the message says what."""


class SkippedError(Exception):
    """The check cannot be made here; the message says why."""


@dataclass(frozen=True)
class Check(Generic[Api]):
    """One behaviour.

    Attributes:
        name: what is typed and reported: `stream-done`.
        needed_by: clients that rely on it.
        why: what goes wrong for them without it.
        run: returns when the behaviour is there; else raises FailedError or SkippedError.
    """

    name: str
    needed_by: str
    why: str
    run: Callable[[Api], None]


@dataclass(frozen=True)
class Outcome:
    """What a check found; `detail` is empty where it passed."""

    name: str
    needed_by: str
    why: str
    result: Result
    detail: str = ""


def expect(condition: bool, message: str) -> None:
    """Fail with `message` unless the condition holds."""
    if not condition:
        raise FailedError(message)


def pick(value: Any, *path: str | int) -> Any:
    """The part of an answer at `path`; it fails where there is none, and says where."""
    for depth, step in enumerate(path):
        fits = isinstance(value, list if isinstance(step, int) else dict)
        if not fits or (isinstance(step, int) and step >= len(value)) or (fits and _lacks(value, step)):
            where = ".".join(str(part) for part in path[: depth + 1])
            raise FailedError(f"the answer has no {where}: {shown(value)}")
        value = value[step]
    return value


def _lacks(value: Any, step: str | int) -> bool:
    return isinstance(step, str) and step not in value


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 160 else f"{text[:160]}…"

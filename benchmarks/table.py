"""Rows of the report: which figure of which worker, against what, and how far it was to go.

A ratio is the median of the ratios within each round. Knows nothing of processes.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import Result, Results


@dataclass(frozen=True)
class Place:
    """Where a figure comes from: a case and the worker that ran it."""

    case: str
    worker: str


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        name: what a reader calls it.
        ours: our figure.
        peer: the figure it is divided by; None when ours stands alone.
        key: the field of the result to take; None for the rate, amount (tokens or gigabytes) per second.
        factor: what the value is multiplied with.
        unit: "x", "%" (of a share), or what `key` is in.
        goal, floor: to reach, and at least; None where only the figure is of interest.
        lower_is_better: goal and floor are upper limits.
    """

    name: str
    ours: Place
    peer: Place | None = None
    key: str | None = None
    factor: float = 1.0
    unit: str = "x"
    goal: float | None = None
    floor: float | None = None
    lower_is_better: bool = False

    @property
    def places(self) -> tuple[Place, ...]:
        """All figures that the row needs."""
        return (self.ours,) if self.peer is None else (self.ours, self.peer)


@dataclass(frozen=True)
class Outcome:
    """A row with its figures; `value` is None when there are none, and `why` says why.

    Attributes:
        rounds: the value of each round.
        ours, peer: median rates, or fields, by themselves.
    """

    row: Row
    value: float | None = None
    rounds: list[float] = field(default_factory=list)
    ours: float | None = None
    peer: float | None = None
    why: str = ""

    @property
    def verdict(self) -> str:
        """Where the value stands between goal and floor."""
        if self.value is None:
            return "no figure"
        if self.row.goal is not None and self._reaches(self.row.goal):
            return "goal"
        if self.row.floor is not None:
            return "floor" if self._reaches(self.row.floor) else "BELOW"
        return "" if self.row.goal is None else "BELOW"

    def _reaches(self, limit: float) -> bool:
        assert self.value is not None
        return self.value <= limit if self.row.lower_is_better else self.value >= limit

    def entry(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "name": self.row.name,
            "case": self.row.ours.case,
            "value": self.value,
            "unit": self.row.unit,
            "goal": self.row.goal,
            "floor": self.row.floor,
            "lower_is_better": self.row.lower_is_better,
            "verdict": self.verdict,
            "ours": {"worker": self.row.ours.worker, "median": self.ours},
            "peer": self.row.peer and {"worker": self.row.peer.worker, "median": self.peer},
            "rounds": self.rounds,
            **({"why": self.why} if self.why else {}),
        }


def amount_per_second(result: Result) -> float:
    """Tokens, or gigabytes, per second."""
    return result["tokens" if "tokens" in result else "gigabytes"] / result["seconds"]


def outcome(row: Row, results: Results, unfit: Mapping[str, str]) -> Outcome:
    """Put a row's figures together.

    Args:
        unfit: why workers are missing, by name.
    """

    def figures(place: Place) -> list[float | None]:
        found = results.get(place.case, {}).get(place.worker, [])
        read = amount_per_second if row.key is None else (lambda result: result[row.key or ""])
        return [None if result is None else read(result) for result in found]

    ours = figures(row.ours)
    peers = figures(row.peer) if row.peer else [1.0] * len(ours)
    rounds = [
        mine / other * row.factor
        for mine, other in zip(ours, peers, strict=False)
        if mine is not None and other
    ]
    missing = [f"{place.worker}: {unfit[place.worker]}" for place in row.places if place.worker in unfit]
    return Outcome(
        row=row,
        value=statistics.median(rounds) if rounds else None,
        rounds=[round(value, 5) for value in rounds],
        ours=_median(ours),
        peer=_median(peers) if row.peer else None,
        why="" if rounds else "; ".join(missing) or "failed, see standard error",
    )


def _median(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def shown(value: float | None, unit: str) -> str:
    """A figure in its unit, three digits."""
    if value is None:
        return "-"
    if unit == "%":
        return f"{100 * value:.1f} %"
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}" + ("" if unit == "x" else f" {unit}")


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """The report as a table of text."""
    head = ("row", "ours", "peer", "value", "goal", "floor", "")
    body = [
        (
            each.row.name,
            shown(each.ours, "x"),
            shown(each.peer, "x"),
            shown(each.value, each.row.unit),
            _limit(each.row, each.row.goal),
            _limit(each.row, each.row.floor),
            each.verdict + (f" ({each.why})" if each.why else ""),
        )
        for each in outcomes
    ]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head) - 1)]
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(line[c].rjust(widths[c]) for c in range(1, len(widths))), line[-1]]
        ).rstrip()
        for line in [head, *body]
    ]


def _limit(row: Row, limit: float | None) -> str:
    sign = "<= " if row.lower_is_better else ""
    return "" if limit is None else sign + shown(limit, row.unit)

"""95 % intervals of a share of right answers, and of the change between two models on the same rows."""

from __future__ import annotations

from collections.abc import Sequence

_Z = 1.96


def wilson(num_right: int, num_rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, both ends 0 to 1."""
    share = num_right / num_rows
    centre = share + _Z * _Z / (2 * num_rows)
    spread = _Z * (share * (1 - share) / num_rows + _Z * _Z / (4 * num_rows * num_rows)) ** 0.5
    scale = 1 + _Z * _Z / num_rows
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def change(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float]:
    """The 95 % interval of how much larger the second's share of right answers is than the first's.

    Bonett and Price's for paired rows (2012): one row is added to those that only one of both got right, so
    that two models that agree on every row still have an interval.
    """
    gained = sum(new and not old for old, new in zip(first, second, strict=True)) + 1
    lost = sum(old and not new for old, new in zip(first, second, strict=True)) + 1
    rows = len(first) + 2
    middle = (gained - lost) / rows
    spread = _Z * ((gained + lost) / rows - middle * middle) ** 0.5 / rows**0.5
    return max(-1.0, middle - spread), min(1.0, middle + spread)

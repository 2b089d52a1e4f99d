"""The curves of a run as one self-contained HTML page."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]

_LEFT, _BOTTOM, _TOP, _RIGHT = 52, 30, 12, 10
_COLOURS = ("#2563eb", "#d97706")
_CHARTS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("Loss", ("loss", "evaluation_loss"), True),
    ("Gradient norm", ("grad_norm",), True),
    ("Learning rate", ("lr",), False),
    ("Tokens per second", ("tokens_per_second",), False),
)
_STYLE = (
    "body{font:15px system-ui;margin:2rem auto;max-width:860px;color:#222}"
    "svg{width:100%;height:auto}text{font-size:12px;fill:#555}h2{font-size:1rem;margin:1.5rem 0 0}"
)


def write_loss_page(rows: Rows, path: Path, *, title: str) -> None:
    """Draw the metrics over the steps as one HTML file without outside references."""
    charts = "".join(
        f"<h2>{label}{_legend(names, rows)}</h2>"
        f"{chart_svg(rows, names, logarithmic=logarithmic, label=label)}"
        for label, names, logarithmic in _CHARTS
        if any(names[0] in row for row in rows)
    )
    last = [row for row in rows if "loss" in row][-1:]
    summary = "".join(f"<p>Last loss {row['loss']:.4f} at step {row['step']}.</p>" for row in last)
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{summary}{charts}</html>"
    )
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)


def loss_svg(rows: Rows) -> str:
    """The loss curve as an SVG element, on a logarithmic axis."""
    return chart_svg(rows, ("loss",), logarithmic=True, label="loss over steps")


def chart_svg(
    rows: Rows,
    names: Sequence[str],
    *,
    logarithmic: bool,
    label: str,
    width: int = 820,
    height: int = 360,
) -> str:
    """Curves of some metrics over the steps as an SVG element; a row without a metric is left out of it."""
    curves = {
        name: [(row["step"], _level(row[name], logarithmic)) for row in rows if row.get(name) is not None]
        for name in names
    }
    levels = [level for curve in curves.values() for _, level in curve if math.isfinite(level)]
    last_step = max((row["step"] for row in rows), default=1)
    low, high, tick = _axis(levels or [0.0], logarithmic)

    def x(step: float) -> float:
        return _LEFT + (width - _LEFT - _RIGHT) * step / max(last_step, 1)

    def y(level: float) -> float:
        return _TOP + (height - _TOP - _BOTTOM) * (high - level) / (high - low)

    parts = []
    for number in range(round((high - low) / tick) + 1):
        level = low + number * tick
        value = 10**level if logarithmic else level
        parts.append(
            f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y(level):.1f}" y2="{y(level):.1f}" '
            f'stroke="#e4e4e4"/>'
            f'<text x="{_LEFT - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for quarter in range(5):
        step = last_step * quarter / 4
        parts.append(f'<text x="{x(step):.1f}" y="{height - 8}" text-anchor="middle">{step:.0f}</text>')
    for colour, curve in zip(_COLOURS, curves.values(), strict=False):
        points = " ".join(f"{x(step):.1f},{y(level):.1f}" for step, level in curve if math.isfinite(level))
        if points:
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _level(value: float, logarithmic: bool) -> float:
    return math.log10(max(value, 1e-6)) if logarithmic and math.isfinite(value) else value


def _axis(levels: Sequence[float], logarithmic: bool) -> tuple[float, float, float]:
    """(lowest, highest, distance of ticks) of an axis that holds all levels."""
    if logarithmic:
        low, high = math.floor(min(levels) * 2) / 2, math.ceil(max(levels) * 2) / 2
        return low, max(high, low + 0.5), 0.5
    top = max(max(levels), 1e-12)
    tick = 10 ** math.floor(math.log10(top))
    tick = tick / 2 if top / tick < 3 else tick
    return 0.0, math.ceil(top / tick) * tick, tick


def _legend(names: Sequence[str], rows: Rows) -> str:
    """The names of the curves in their colours, where there are several."""
    present = [name for name in names if any(name in row for row in rows)]
    if len(present) < 2:
        return ""
    return "".join(
        f' <span style="color:{colour}">{html.escape(name.replace("_", " "))}</span>'
        for name, colour in zip(present, _COLOURS, strict=False)
    )

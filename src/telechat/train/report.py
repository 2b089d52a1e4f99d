"""Metrics of a run as JSON lines, a console line, and a self-contained picture of the loss."""

from __future__ import annotations

import html
import json
import os
import sys
from pathlib import Path
from typing import Any


class Metrics:
    """Appends rows to `metrics.jsonl` and prints them; rows past the resumed step are cut off first."""

    def __init__(self, folder: Path, *, resumed_step: int, total_steps: int) -> None:
        self.path = folder / "metrics.jsonl"
        self.total_steps = total_steps
        self.rows = [row for row in read_metrics(self.path) if row["step"] <= resumed_step]
        folder.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")

    def add(self, **row: Any) -> None:
        """Record one row of metrics."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        print(
            f"step {row['step']}/{self.total_steps}  loss {row['loss']:.4f}  grad {row['grad_norm']:.2f}  "
            f"lr {row['lr']:.2e}  {row['tokens_per_second']:.0f} tokens/s",
            file=sys.stderr,
            flush=True,
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; none if it does not exist. A torn last line (a killed run) is left out."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_loss_page(rows: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """Draw the loss over the steps as one HTML file without outside references."""
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        "<style>body{font:15px system-ui;margin:2rem auto;max-width:860px;color:#222}"
        "svg{width:100%;height:auto}text{font-size:12px;fill:#555}</style>"
        f"<h1>{html.escape(title)}</h1>{loss_svg(rows)}"
        f"<p>{len(rows)} points; last loss {rows[-1]['loss']:.4f} at step {rows[-1]['step']}.</p></html>"
    )
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)


def loss_svg(rows: list[dict[str, Any]], *, width: int = 820, height: int = 360) -> str:
    """The loss curve as an SVG element, on a logarithmic axis."""
    import math

    left, bottom, top = 52, 30, 12
    steps: list[float] = [row["step"] for row in rows]
    logs = [math.log10(max(row["loss"], 1e-6)) for row in rows]
    low, high = math.floor(min(logs) * 2) / 2, math.ceil(max(logs) * 2) / 2
    high = max(high, low + 0.5)

    def x(step: float) -> float:
        return left + (width - left - 10) * step / max(steps[-1], 1)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / (high - low)

    points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, logs, strict=True))
    ticks = []
    tick = low
    while tick <= high + 1e-9:
        ticks.append(
            f'<line x1="{left}" x2="{width - 10}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#e4e4e4"/>'
            f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{10**tick:.3g}</text>'
        )
        tick += 0.5
    for part in range(5):
        step = steps[-1] * part / 4
        ticks.append(f'<text x="{x(step):.1f}" y="{height - 8}" text-anchor="middle">{step:.0f}</text>')
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="loss over steps">{"".join(ticks)}'
        f'<polyline points="{points}" fill="none" stroke="#2563eb" stroke-width="1.5"/></svg>'
    )

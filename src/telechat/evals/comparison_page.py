"""A comparison of two models as text for the terminal and as one HTML file with plots. Measures nothing."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from telechat.evals.comparison import Comparison

_WIDTH, _HEIGHT, _MARGIN = 720, 180, 34
_BINS = 40
_LEAST_KL = 1e-7
_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top }
td.number { text-align: right } pre { white-space: pre-wrap; margin: 0 } svg { display: block }
"""


def summary_rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    """(what, of the first model, of the second or of both)."""
    first, second = comparison.perplexities
    sizes = [f"{cost.num_bytes / 1e6:.1f} MB" for cost in comparison.costs]
    rows = [
        ("perplexity", f"{first:.5f}", f"{second:.5f} ({second / first - 1:+.3%})"),
        ("KL divergence, nats per token", "", f"{comparison.mean_kl:.6f}"),
        ("KL, 99 of 100 tokens below", "", f"{comparison.high_kl:.6f}"),
        ("same first choice", "", f"{comparison.agreement:.3%} of {comparison.num_tokens} tokens"),
        ("weights on disk", sizes[0], sizes[1]),
    ]
    speeds = [cost.tokens_per_second for cost in comparison.costs]
    if speeds[0] is not None and speeds[1] is not None:
        rows.append(("tokens per second, one request", f"{speeds[0]:.1f}", f"{speeds[1]:.1f}"))
    return rows


def task_rows(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """(task and rows, the first's share of right answers, the second's, the change), with 95 % intervals."""
    rows = []
    for task in comparison.tasks:
        shares = [
            f"{right / task.num_rows:.1%} ({low:.1%} to {high:.1%})"
            for right, (low, high) in zip(task.num_right, task.intervals, strict=True)
        ]
        low, high = (100 * end for end in task.change_interval)
        moved = f"{100 * task.change:+.1f} points ({low:+.1f} to {high:+.1f})"
        rows.append((f"{task.task}, {task.num_rows} rows", shares[0], shares[1], moved))
    return rows


def to_text(comparison: Comparison) -> str:
    """A table for the terminal."""
    lines = [f"{'':32} {comparison.first:>20}  {comparison.second}"]
    lines += [f"{what:32} {first:>20}  {second}" for what, first, second in summary_rows(comparison)]
    lines += [
        f"{task:32} {first:>20}  {second}, {moved}" for task, first, second, moved in task_rows(comparison)
    ]
    return "\n".join(lines)


def to_html(comparison: Comparison) -> str:
    """One file that needs nothing else."""
    first, second = html.escape(comparison.first), html.escape(comparison.second)
    layers = sorted(comparison.layers, key=lambda layer: layer.name)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{second} against {first}</title><style>{_STYLE}</style>",
        f"<h1>{second} against {first}</h1>",
        _table(("", comparison.first, comparison.second), summary_rows(comparison)),
        *_tasks(comparison),
        "<h2>How far predictions move</h2>",
        "<p>Tokens by their KL divergence, on a logarithmic scale.</p>",
        _histogram(comparison.token_kl),
        "<h2>Weights, layer by layer</h2>",
        "<p>Norm of the difference over the norm of the first model's weight.</p>" if layers else "",
        _bars([(layer.name, layer.error) for layer in layers]) if layers else "<p>The shapes differ.</p>",
        "<h2>Rows that differ most</h2>",
        _table(
            ("row", "prompt", comparison.first, comparison.second),
            [(str(said.number), said.prompt, said.first, said.second) for said in comparison.answers],
        ),
        "<h2>All rows</h2>",
        _table(
            ("row", "tokens", "KL", "same choice"),
            [
                (
                    str(row.number),
                    str(row.num_tokens),
                    f"{row.kl:.6f}",
                    f"{row.num_agreed / row.num_tokens:.1%}",
                )
                for row in comparison.rows
            ],
        ),
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _tasks(comparison: Comparison) -> list[str]:
    if not comparison.tasks:
        return []
    return [
        "<h2>Tasks</h2>",
        "<p>Share of right answers, and in brackets what holds with 95 % certainty. The change counts which "
        "rows changed.</p>",
        _table(("", comparison.first, comparison.second, "change"), task_rows(comparison)),
        _intervals(comparison),
    ]


def _intervals(comparison: Comparison) -> str:
    """For each task the change in points, with its interval; the line in the middle is no change."""
    ends = [end for task in comparison.tasks for end in task.change_interval]
    reach = max(abs(end) for end in ends)
    left, line = 260, 22

    def place(share: float) -> float:
        return left + (_WIDTH - left - _MARGIN) * (share / reach + 1) / 2

    height = line * len(comparison.tasks) + _MARGIN
    shapes = [
        f'<line x1="{place(0):.1f}" x2="{place(0):.1f}" y1="0" y2="{height - _MARGIN}" stroke="#999"/>',
        f'<text x="{left}" y="{height - 12}" font-size="12">{-100 * reach:+.1f} points</text>',
        f'<text x="{_WIDTH - _MARGIN}" y="{height - 12}" font-size="12" text-anchor="end">'
        f"{100 * reach:+.1f} points</text>",
    ]
    for number, task in enumerate(comparison.tasks):
        y, name = line * number + line / 2, html.escape(task.task)
        low, high = (place(end) for end in task.change_interval)
        shapes += [
            f'<text x="{left - 10}" y="{y + 4}" font-size="12" text-anchor="end">{name}</text>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="#4472aa" stroke-width="3"/>',
            f'<circle cx="{place(task.change):.1f}" cy="{y}" r="5" fill="#4472aa"/>',
        ]
    return f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">' + "".join(shapes) + "</svg>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}" for cell in head)
    body = "".join("<tr>" + "".join(f"<td><pre>{html.escape(cell)}</pre>" for cell in row) for row in rows)
    return f"<table><tr>{cells}{body}</table>"


def _histogram(values: Sequence[float]) -> str:
    """Counts by the logarithm of the value."""
    logs = [math.log10(max(value, _LEAST_KL)) for value in values]
    low, high = min(logs), max(max(logs), min(logs) + 1e-6)
    counts = [0] * _BINS
    for value in logs:
        counts[min(_BINS - 1, int((value - low) / (high - low) * _BINS))] += 1
    width = (_WIDTH - 2 * _MARGIN) / _BINS
    tallest = max(counts)
    shapes = [
        _rectangle(_MARGIN + number * width, count / tallest, width - 1, f"{count} tokens")
        for number, count in enumerate(counts)
    ]
    ends = [(_MARGIN, f"{10**low:.1e}"), (_WIDTH - 2 * _MARGIN, f"{10**high:.1e}")]
    return _svg(shapes, ends)


def _bars(values: Sequence[tuple[str, float]]) -> str:
    """A bar for each name."""
    width = (_WIDTH - 2 * _MARGIN) / len(values)
    highest = max(value for _, value in values) or 1.0
    shapes = [
        _rectangle(_MARGIN + number * width, value / highest, max(width - 1, 0.5), f"{name}: {value:.3%}")
        for number, (name, value) in enumerate(values)
    ]
    return _svg(shapes, [(_MARGIN, values[0][0]), (_WIDTH // 2, f"highest {highest:.3%}")])


def _rectangle(x: float, share: float, width: float, title: str) -> str:
    height = share * (_HEIGHT - 2 * _MARGIN)
    y = _HEIGHT - _MARGIN - height
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="#4472aa">'
        f"<title>{html.escape(title)}</title></rect>"
    )


def _svg(shapes: Sequence[str], labels: Sequence[tuple[float, str]]) -> str:
    texts = [
        f'<text x="{x:.0f}" y="{_HEIGHT - 12}" font-size="12">{html.escape(text)}</text>'
        for x, text in labels
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img">'
        + "".join([*shapes, *texts])
        + "</svg>"
    )

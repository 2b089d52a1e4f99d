"""A picture of what formats lose: a bar for each format of each model, with its standard error."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

WIDTH, NAME_WIDTH, BAR_WIDTH, LINE = 980, 260, 480, 22
COLOURS = {"round": "#9e9e9e", "llm-c": "#c77c2a"}
OURS = "#2f6db3"


def svg(report: Mapping[str, Any]) -> str:
    """The chart of a report of `benchmarks.quantise`; each model has a scale of its own."""
    machine = report["machine"]
    about = f"{report['date'][:10]}, {report['commit']}, {machine['processor']}"
    parts = [
        '<text x="12" y="22" font-size="16" font-weight="600">What each format loses</text>',
        f'<text x="12" y="42" fill="#555">Perplexity on held-out rows against floats; {escape(about)}</text>',
    ]
    top = 70
    for name, model in report["models"].items():
        formats = {what: figures for what, figures in model["formats"].items() if what != "float"}
        ends = [figures["lost"] + figures["standard_error"] for figures in formats.values()]
        least = min(0.0, *(figures["lost"] - figures["standard_error"] for figures in formats.values()))
        scale = BAR_WIDTH / (max(*ends, 1e-6) - least)
        plain = model["formats"]["float"]["perplexity"]
        parts.append(
            f'<text x="12" y="{top}" font-weight="600">{escape(name)}, perplexity {plain:.4f}</text>'
        )
        for number, (what, figures) in enumerate(formats.items()):
            parts += _bar(what, figures, top + 10 + LINE * number, NAME_WIDTH - least * scale, scale)
        top += LINE * len(formats) + 44
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
        'font-family="system-ui, sans-serif" font-size="13">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>', *parts, "</svg>", ""])


def _bar(what: str, figures: Mapping[str, float], top: float, zero: float, scale: float) -> list[str]:
    """Name, bar from `zero`, error and figure of a format."""
    lost, error = figures["lost"] * scale, figures["standard_error"] * scale
    middle = top + LINE / 2
    return [
        f'<text x="{NAME_WIDTH - 10}" y="{middle + 4}" text-anchor="end">{escape(what)}</text>',
        f'<rect x="{zero + min(lost, 0):.1f}" y="{top + 3}" width="{abs(lost):.1f}" height="{LINE - 6}" '
        f'fill="{COLOURS.get(what[:5], OURS)}"/>',
        f'<line x1="{zero + lost - error:.1f}" x2="{zero + lost + error:.1f}" y1="{middle}" y2="{middle}" '
        'stroke="#000"/>',
        f'<text x="{NAME_WIDTH + BAR_WIDTH + 20}" y="{middle + 4}">{figures["lost"]:+.3%} '
        f"± {figures['standard_error']:.3%}</text>",
    ]

"""A picture of a report: one bar per row, its value as a share of the goal. SVG, no dependencies.

python -m benchmarks.chart benchmarks/results/decode-2026-11-21.json > chart.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.table import shown

WIDTH, NAME_WIDTH, BAR_WIDTH, LINE = 980, 400, 360, 24
COLOURS = {"goal": "#2e7d32", "floor": "#f9a825", "BELOW": "#c62828", "": "#607d8b"}
# The bar's end stands for this multiple of the goal.
FULL = 1.5


def svg(report: Mapping[str, Any]) -> str:
    """The chart of a report as `benchmarks.decode` writes it."""
    rows = [row for row in report["rows"] if row["value"] is not None]
    height = 70 + LINE * len(rows)
    machine = report["machine"]
    about = f"{machine['cores']} cores, {machine['processor']}, {report['date'][:10]}, {report['commit']}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        '<text x="12" y="22" font-size="16" font-weight="600">TeleChat against its goals</text>',
        f'<text x="12" y="42" fill="#555">{escape(about)}; line: goal, dashes: floor</text>',
    ]
    for number, row in enumerate(rows):
        parts += _bar(row, 60 + LINE * number)
    return "\n".join([*parts, "</svg>", ""])


def _bar(row: Mapping[str, Any], top: int) -> list[str]:
    """A row's name, bar, limits and figures. Without a goal the floor, then 1, stands for it."""
    reference = row["goal"] or row["floor"] or 1.0
    colour = COLOURS.get(row["verdict"], COLOURS[""])

    def place(value: float) -> float:
        return NAME_WIDTH + BAR_WIDTH * min(value / reference / FULL, 1)

    limits = [(row["goal"], ""), (row["floor"], ' stroke-dasharray="3 2"')]
    label = shown(row["value"], row["unit"])
    if row["peer"] and row["peer"]["median"] is not None and row["unit"] == "x":
        label += f"  ({shown(row['ours']['median'], 'x')} to {shown(row['peer']['median'], 'x')})"
    return [
        f'<text x="{NAME_WIDTH - 8}" y="{top + 14}" text-anchor="end">{escape(row["name"])}</text>',
        f'<rect x="{NAME_WIDTH}" y="{top + 2}" width="{place(row["value"]) - NAME_WIDTH:.1f}" height="16" '
        f'fill="{colour}"/>',
        *(
            f'<line x1="{place(limit):.1f}" x2="{place(limit):.1f}" y1="{top}" y2="{top + 20}" '
            f'stroke="#000"{dashes}/>'
            for limit, dashes in limits
            if limit is not None
        ),
        f'<text x="{NAME_WIDTH + BAR_WIDTH + 10}" y="{top + 14}">{escape(label)}</text>',
    ]


def main(words: Sequence[str]) -> int:
    """Print the chart of a file."""
    if len(words) != 1:
        print("usage: python -m benchmarks.chart RESULT.json", file=sys.stderr)
        return 2
    print(svg(json.loads(Path(words[0]).read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

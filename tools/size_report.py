"""Print how much code there is: lines by package, and the longest files and functions against our limits."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "telechat"
FILE_LIMIT = 400
FUNCTION_LIMIT = 60
SHOWN = 10


def function_lengths(path: Path) -> list[tuple[int, str]]:
    """(lines, "file:line name") of every function in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            where = f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}"
            found.append((node.end_lineno - node.lineno + 1, where))
    return found


def main() -> None:
    """Print the report."""
    packages: Counter[str] = Counter()
    files: list[tuple[int, str]] = []
    functions: list[tuple[int, str]] = []
    for path in sorted(SOURCE.rglob("*.py")):
        relative = path.relative_to(SOURCE)
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        packages[relative.parts[0]] += num_lines
        files.append((num_lines, str(relative)))
        functions += function_lengths(path)
    print(f"{sum(packages.values()):6} lines in {len(files)} files")
    for name, count in packages.most_common():
        print(f"{count:6} {name}")
    for title, rows, limit in (("files", files, FILE_LIMIT), ("functions", functions, FUNCTION_LIMIT)):
        over = sum(length > limit for length, _ in rows)
        print(f"\nlongest {title} (limit {limit}, {over} over)")
        for length, where in sorted(rows, reverse=True)[:SHOWN]:
            print(f"{length:6}{'!' if length > limit else ' '} {where}")


if __name__ == "__main__":
    main()

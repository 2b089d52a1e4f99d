"""The tree is the architecture: imports go downward only, and neighbours from `models` up do not meet."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "telechat"

# Top row first. Rows whose members may import one another are marked; `layers` stands on `ops` in one row.
ROWS: tuple[tuple[tuple[str, ...], bool], ...] = (
    (("cli", "__main__"), True),
    (("serve", "evals", "bench", "bundle", "conformance", "hf"), False),
    (("engine", "train", "quant"), False),
    (("data", "checkpoint", "parallel"), False),
    (("models", "tokenizer"), False),
    (("layers",), False),
    (("ops",), False),
    (("config", "run_file", "registry", "device", "errors", "logs"), True),
)
# `telechat/__init__.py` only names places; it imports them when asked.
FREE = {"__init__"}


def row_of(part: str) -> int:
    """The row a package or module of telechat stands on, 0 at the top."""
    for number, (members, _) in enumerate(ROWS):
        if part in members:
            return number
    raise AssertionError(
        f"telechat.{part} has no place in the layers; give it one in this test and in the docs"
    )


def imported_parts(path: Path) -> set[str]:
    """The parts of telechat that a file imports, at module level or inside functions."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "telechat" else [base]
        else:
            continue
        parts |= {name.split(".")[1] for name in names if name.startswith("telechat.")}
    return parts - {"__version__"}


def violation(importer: str, imported: str) -> str | None:
    """Why `importer` may not import `imported`; None when it may."""
    if importer == imported or importer in FREE:
        return None
    upper, lower = row_of(importer), row_of(imported)
    if upper > lower:
        return f"{importer} is below {imported}"
    if upper == lower and not ROWS[upper][1]:
        return f"{importer} and {imported} are neighbours"
    return None


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_downward_only(path: Path) -> None:
    importer = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    problems = [violation(importer, imported) for imported in sorted(imported_parts(path))]
    assert not [problem for problem in problems if problem]


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("engine", "models", True),
        ("models", "engine", False),
        ("serve", "hf", False),
        ("cli", "serve", True),
        ("ops", "layers", False),
        ("config", "errors", True),
    ],
)
def test_the_rule_itself(importer: str, imported: str, allowed: bool) -> None:
    assert (violation(importer, imported) is None) is allowed

"""Two small models made from the demo model, whose predictions are not nearly certain as the demo's are.

    python -m benchmarks.quantise_models

`text` goes on reading free text: the docstrings of Python's own library, its language reference, this
project's pages in English and Chinese. `functions` answers what a function of that library does, between rows
of the demo's tasks. The rows are made here from what every checkout has; the training is `telechat train`. A
tenth of all documents is held out. Knows nothing of quantisation.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT
from telechat.checkpoint.hub import demo_folder
from telechat.data.demo import Split, write_jsonl

FOLDER = ROOT / "runs" / "quality"
SEED = 7
SPLITS: tuple[Split, Split] = ("train", "test")
# One document of so many is held out.
HELD_OUT = 10
# Of a row of text; about 500 tokens.
ROW_CHARACTERS = 1100
_LONGEST_ANSWER = 300
_LEFT_OUT = {"test", "tests", "site-packages", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}


@dataclass(frozen=True)
class Document:
    """A text and where it is from; the name decides whether it is held out."""

    name: str
    text: str

    @property
    def is_held_out(self) -> bool:
        """The same on every machine."""
        return int(_digest(self.name), 16) % HELD_OUT == 0


@dataclass(frozen=True)
class Recipe:
    """A model to make: its name, steps, and peak learning rate."""

    name: str
    steps: int
    lr: float

    @property
    def folder(self) -> Path:
        """The trained model."""
        return FOLDER / self.name / "model"

    def rows(self, split: str) -> Path:
        """Rows of `train` or `test`."""
        return FOLDER / f"{self.name}-{split}.jsonl"

    def settings(self) -> dict[str, Any]:
        """What `telechat train` is told."""
        return {
            "model": {"start_from": str(demo_folder())},
            "data": {"train_file": str(self.rows("train")), "max_length": 512},
            "batch": {"tokens_per_step": 4096, "micro_batches": 2},
            "optimizer": {"lr": self.lr, "weight_decay": 0.0},
            "schedule": {"total_steps": self.steps, "warmup_steps": 20, "decay_fraction": 0.5},
            "output": {"folder": str(self.folder.parent), "save_every": 100},
            "precision": "bf16",
            "seed": SEED,
        }


TEXT = Recipe("text", 300, 1e-3)
FUNCTIONS = Recipe("functions", 300, 1e-3)
RECIPES = (TEXT, FUNCTIONS)


# The dotted name of a module, and the docstrings of it, its classes and functions, each with what it is of.
Module = tuple[str, list[tuple[ast.AST, str]]]


def library_modules() -> Iterator[Module]:
    """The modules of this Python's library, in order."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not _LEFT_OUT & set(parts):
            try:
                yield ".".join(parts), list(documented(ast.parse(path.read_text(encoding="utf-8"))))
            except (SyntaxError, UnicodeDecodeError):
                continue  # test data of some module, not a module


def documented(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """(node, docstring) of a module, its classes and functions, but those within functions."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield node, text
        if isinstance(node, ast.Module | ast.ClassDef):
            for child in node.body:
                yield from documented(child)


def text_documents(modules: Sequence[Module]) -> Iterator[Document]:
    """All free text."""
    from pydoc_data.topics import topics

    for name, found in modules:
        yield Document(name, "\n\n".join(text for _, text in found))
    for name, text in sorted(topics.items()):
        yield Document(f"topic {name}", text)
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]:
        if path.name != "commands.md":
            yield Document(path.name, path.read_text(encoding="utf-8"))


def text_rows(document: Document) -> Iterator[dict[str, Any]]:
    """Whole paragraphs, as many as fit a row."""
    held = ""
    for paragraph in document.text.split("\n\n"):
        if held and len(held) + len(paragraph) > ROW_CHARACTERS:
            yield {"text": held}
            held = ""
        held = f"{held}\n\n{paragraph}" if held else paragraph
    if held.strip():
        yield {"text": held}


def function_rows(modules: Sequence[Module]) -> Iterator[tuple[Document, dict[str, Any]]]:
    """Questions for what a function does; held out are whole modules."""
    for name, found in modules:
        for node, text in found:
            answer = " ".join(text.split("\n\n")[0].split())
            if isinstance(node, ast.FunctionDef) and 10 < len(answer) <= _LONGEST_ANSWER:
                words = f"What does {node.name}({ast.unparse(node.args)}) in {name} do?"
                messages = [{"role": "user", "content": words}, {"role": "assistant", "content": answer}]
                yield Document(name, answer), {"messages": messages}


def _demo_rows(split: Split, count: int) -> list[dict[str, Any]]:
    path = FOLDER / f"demo-{split}.jsonl"
    write_jsonl(path, count, split, SEED)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(num_demo_rows: int = 0) -> None:
    """The rows of all models, mixed; those of the demo model as `demo-train` and `demo-test`.

    Args:
        num_demo_rows: least number of the held-out rows of the demo model.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    modules = list(library_modules())
    found: dict[str, list[dict[str, Any]]] = {r.rows(split).name: [] for r in RECIPES for split in SPLITS}
    for document in text_documents(modules):
        found[TEXT.rows(SPLITS[document.is_held_out]).name] += text_rows(document)
    for document, row in function_rows(modules):
        found[FUNCTIONS.rows(SPLITS[document.is_held_out]).name].append(row)
    for split in SPLITS:
        rows = found[FUNCTIONS.rows(split).name]
        count = len(rows)
        least = num_demo_rows if split == "test" else 0
        rows += _demo_rows(split, max(count, least))[:count]
    for name, rows in found.items():
        lines = sorted((json.dumps(row, ensure_ascii=False) + "\n" for row in rows), key=_digest)
        (FOLDER / name).write_text("".join(lines), encoding="utf-8")


def _digest(text: str) -> str:
    """Mixes rows, and leaves the others where they are when one changes."""
    return hashlib.sha256(text.encode()).hexdigest()


def train(recipe: Recipe) -> None:
    """Train a model where it is not there yet.

    Raises:
        subprocess.CalledProcessError: training failed; it has said why.
    """
    if (recipe.folder / "config.json").exists():
        return
    run_file = recipe.folder.parent.with_suffix(".yaml")
    run_file.write_text(json.dumps(recipe.settings(), indent=2), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "telechat", "train", "--config", str(run_file)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})


def main(words: Sequence[str]) -> int:
    """Write rows, train both models, say where they are."""
    if words:
        print(__doc__, file=sys.stderr)
        return 2
    write_rows()
    for recipe in RECIPES:
        train(recipe)
        print(recipe.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Finds the recorded outputs of the official code that are too large, or not ours, to be committed.

They are looked for in a folder `shared` beside the repository (or beside one of its parents). Tests that need
them carry the mark `needs_shared` and are skipped, with this reason, where the folder is missing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[1]


def _find() -> Path | None:
    candidates = (parent / "shared" for parent in _REPOSITORY.parents)
    return next((folder for folder in candidates if (folder / "golden").is_dir()), None)


SHARED = _find()

needs_shared = pytest.mark.skipif(
    SHARED is None, reason="recorded outputs of the official code (folder shared/golden) are not here"
)


def shared_path(relative: str) -> Path:
    """Path of a shared file, e.g. `shared_path("golden/tokenizer/cases.json")`; skips the test without it."""
    if SHARED is None:
        pytest.skip("recorded outputs of the official code (folder shared/golden) are not here")
    return SHARED / relative

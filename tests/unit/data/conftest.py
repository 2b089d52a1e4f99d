"""Tokenizers of the three kinds, and a way to write rows to files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tokenizer_samples import build_pieces

from telechat.checkpoint import resolve_model
from telechat.tokenizer import Tokenizer, load_tokenizer

WriteRows = Callable[..., Path]


@pytest.fixture(scope="session")
def demo_tokenizer() -> Tokenizer:
    """Byte-level, with TeleChat2's template and tool tags as tokens."""
    return load_tokenizer(resolve_model("demo"))


@pytest.fixture(scope="session")
def telechat1_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Sentencepiece as the 12B's: the marks are pieces that text can become."""
    return load_tokenizer(build_pieces(tmp_path_factory.mktemp("telechat1"), "telechat-12b"))


@pytest.fixture(scope="session")
def telechat2_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Sentencepiece with TeleChat2's template, without tool tags as tokens."""
    return load_tokenizer(build_pieces(tmp_path_factory.mktemp("telechat2"), "telechat2"))


@pytest.fixture(scope="session")
def telechat2_115b_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Sentencepiece with the 115B's chat format, which has no system text."""
    return load_tokenizer(build_pieces(tmp_path_factory.mktemp("telechat2-115b"), "telechat2-115b"))


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Writes rows (objects, or text as it is) as JSON lines; returns the file."""

    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write

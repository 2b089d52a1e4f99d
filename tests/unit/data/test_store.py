"""Encoded samples kept in a folder: found again, made anew when anything changes, mapped into memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telechat.data import encoding_pool
from telechat.data.dataset import load_samples
from telechat.tokenizer import Tokenizer

WriteRows = Callable[..., Path]


def chat(question: str, answer: str, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **changes}]
    return {"messages": messages}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how many rows are encoded."""
    calls: list[int] = []
    original = encoding_pool.encode_record

    def counting(*arguments: Any) -> Any:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(encoding_pool, "encode_record", counting)
    return calls


def test_the_second_time_nothing_is_encoded(
    write_rows: WriteRows, tmp_path: Path, demo_tokenizer: Tokenizer, encoded: list[int]
) -> None:
    path = write_rows(chat("a", "b", weight=2), chat("c", "d"), {"bad": 1})
    kept = tmp_path / "kept"
    first, second = (
        load_samples(path, demo_tokenizer, max_length=99, on_bad_row="skip", cache=kept) for _ in range(2)
    )
    assert len(encoded) == 2
    plain = load_samples(path, demo_tokenizer, max_length=99, on_bad_row="skip")
    for samples in (first, second):
        assert isinstance(samples.sequences.ids, np.memmap)
        assert samples.accounting == plain.accounting
        ours, theirs = (one.batch([0], pad_id=3) for one in (samples, plain))
        for name in ("ids", "positions", "segments", "targets", "weights"):
            assert getattr(ours, name).tolist() == getattr(theirs, name).tolist()


@pytest.mark.parametrize("change", ["length", "loss_on", "seed", "weight", "content", "tokenizer"])
def test_whatever_changes_the_samples_is_encoded_anew(
    write_rows: WriteRows,
    tmp_path: Path,
    demo_tokenizer: Tokenizer,
    telechat2_tokenizer: Tokenizer,
    encoded: list[int],
    change: str,
) -> None:
    path = write_rows(chat("a", "b"))
    arguments: dict[str, Any] = {"max_length": 99, "cache": tmp_path / "kept"}
    load_samples({str(path): 1.0}, demo_tokenizer, **arguments)
    arguments |= {"length": {"max_length": 98}, "loss_on": {"loss_on": "turns"}, "seed": {"seed": 5}}.get(
        change, {}
    )
    if change == "content":
        write_rows(chat("a", "c"))
    tokenizer = telechat2_tokenizer if change == "tokenizer" else demo_tokenizer
    load_samples({str(path): 2.0 if change == "weight" else 1.0}, tokenizer, **arguments)
    assert len(encoded) == 2


def test_a_killed_run_leaves_nothing_that_is_taken_for_whole(
    write_rows: WriteRows, tmp_path: Path, demo_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept = write_rows(chat("a", "b")), tmp_path / "kept"

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("telechat.data.store.json.dumps", killed)
        load_samples(path, demo_tokenizer, max_length=99, cache=kept)
    assert len(load_samples(path, demo_tokenizer, max_length=99, cache=kept)) == 1

"""`make bench-train`: its rows, and both of its workers on a very small model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from benchmarks import train
from benchmarks.table import outcome
from benchmarks.workers import train_telechat, train_transformers


def test_rows_name_their_goals(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "131k peak memory to the Trainer" in listed and len(listed) == 6
    assert train.main(["--list", "--accelerator", "--rows", "*share*"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_without_an_accelerator_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "accelerator_facts", lambda: None)
    assert train.main(["--accelerator"]) == 1
    assert "no accelerator" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--lora", "--recompute", "selective", "--optimizer", "adamw-8bit")])
def test_our_worker_measures_steps(options: tuple[str, ...]) -> None:
    cases, about = train_telechat.open_worker(["--shape", "tiny", *options])
    check(cases["train"])
    assert cases["train"](warmup=0, steps=1)["mfu"] > 0 and about["weights"] > 10**6


def test_the_trainers_worker_measures_steps() -> None:
    pytest.importorskip("accelerate")
    cases, about = train_transformers.open_worker(["--shape", "tiny"])
    check(cases["train"])
    assert about["weights"] > 10**6


def check(measure: Callable[..., Any]) -> None:
    """Two steps of 128 tokens take some time and memory."""
    found = measure(warmup=1, steps=2)
    assert found["tokens"] == 256 and found["seconds"] > 0 and found["peak_bytes"] > 10**8


def test_a_ratio_is_put_together_from_both() -> None:
    group = train.against_trainer("131k", 1, 1, is_compiled=False)
    ours = [{"tokens": 10.0, "seconds": 1.0, "peak_bytes": 3.0}]
    peer = [{"tokens": 10.0, "seconds": 1.5, "peak_bytes": 10.0}]
    results = {"train": {"ours": ours, "Trainer": peer}}
    speed, memory = (outcome(row, results, {}) for row in group.rows)
    assert (speed.value, speed.verdict) == (1.5, "goal")
    assert memory.value == pytest.approx(0.3) and memory.verdict == "goal"

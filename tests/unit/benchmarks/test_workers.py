"""Our own workers still fit the engine: every case once, on a tiny shape."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.workers import kernels, telechat

from telechat.ops.cpu import library

CALLS: dict[str, dict[str, object]] = {
    "decode": {"batch": 2, "prompt": 8, "steps": 3},
    "prefill": {"prompt": 40},
    "prefix": {"shared": 128, "own": 8},
    "fairness": {"flood": 20, "prompt": 8, "new_tokens": 4},
    "generate": {"batch": 2, "prompt": 8, "new_tokens": 3},
    "concurrent": {"batch": 3, "prompt": 8, "new_tokens": 3},
    "arrivals": {"arrivals": [[0.0, 8, 3], [0.01, 12, 2]]},
    "overhead": {"batch": 4, "steps": 3, "is_random": True},
}


def test_the_engine_does_every_case(tmp_path: Path) -> None:
    without = [] if library.obstacle() is None else ["--without-kernels"]
    words = ["--shape", "tiny", "--format", "int8", "--threads", "1", "--models", str(tmp_path), *without]
    cases, about = telechat.open_worker(words)
    assert set(cases) == set(CALLS)
    results = {name: cases[name](**arguments) for name, arguments in CALLS.items()}
    assert all(result["seconds"] > 0 for result in results.values())
    counted = {name: results[name]["tokens"] for name in ("decode", "prefill", "generate", "arrivals")}
    assert counted == {"decode": 6, "prefill": 40, "generate": 6, "arrivals": 5}
    assert 0 < results["overhead"]["share"] < results["overhead"]["share_outside_model"] < 1
    assert about["executor"]


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("gptq-int4", "12 int4 in groups of 128"),
        ("gptq-int8", "12 int8 in groups of 128"),
        ("awq", "12 int8 in groups of 128"),
        ("w8a8", "10 w8a8"),
    ],
)
def test_folders_of_other_tools(tmp_path: Path, name: str, stored: str) -> None:
    if library.obstacle() is not None:
        pytest.skip(f"no CPU kernels: {library.obstacle()}")
    words = ["--shape", "tiny", "--format", name, "--threads", "1", "--models", str(tmp_path)]
    cases, about = telechat.open_worker(words)
    assert stored in str(about["executor"])
    assert cases["decode"](batch=2, prompt=8, steps=3)["tokens"] == 6


def test_a_worker_that_was_to_have_no_kernels_says_so(tmp_path: Path) -> None:
    if library.obstacle() is not None:
        pytest.skip(f"no CPU kernels: {library.obstacle()}")
    words = ["--shape", "tiny", "--threads", "1", "--models", str(tmp_path), "--without-kernels"]
    assert "are to be absent" in str(telechat.open_worker(words)[1]["unfit"])


def test_the_kernels_by_themselves() -> None:
    if library.obstacle() is not None:
        pytest.skip(f"no CPU kernels: {library.obstacle()}")
    cases, _ = kernels.open_worker(["--shape", "tiny", "--format", "int4", "--threads", "1"])
    assert cases["decode"](batch=2, prompt=8, steps=3)["tokens"] == 6
    assert cases["prefill"](prompt=40)["seconds"] > 0

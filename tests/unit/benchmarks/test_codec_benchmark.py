"""`python -m benchmarks.codec` on small weights: what it records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import codec


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "256", "--rounds", "1", "--fraction", "0.011", "--output", str(tmp_path)]
    assert codec.main(words) == 0
    assert capsys.readouterr().out.count("exact: True") == 3
    [path] = tmp_path.glob("codec-*.json")
    report = json.loads(path.read_text())
    assert report["command"].startswith("python -m benchmarks.codec --size 256")
    for row in report["weights"].values():
        assert row["bit_exact"] and 0.5 < row["ratio"] < 0.53 and row["large_share"] <= 0.011
        assert row["decode_mb_per_s_of_a_core"] > 0

"""The benchmark of conversions: which run counts, when a goal holds, and cases that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import convert


def result(case: str, share: float, *, whole: float = 0.5, peak: float = 300e6) -> convert.Result:
    return convert.Result(
        case=case,
        gigabytes=1.0,
        seconds=2.0,
        all_seconds=(2.0, 3.0),
        written_bytes=10**9,
        share_of_whole_command=whole,
        share_of_cp=share,
        peak_bytes=int(peak),
    )


def test_goals_are_of_conversions_that_keep_the_dtype() -> None:
    found = convert.verdicts([result("hf -> hf", 0.8), result("hf -> hf fp32", 0.1, peak=2e9)])
    assert found["throughput >= 0.7 of cp"] == "holds: least 0.80 (hf -> hf, 1.0 GB)"
    assert found["throughput >= 0.7 of cp, start included"].startswith("fails: least 0.50")
    assert found["peak <= 1 GB"] == "fails: most 2000 MB (hf -> hf fp32, 1.0 GB)"


def test_the_best_run_counts(tmp_path: Path) -> None:
    runs = convert.Runs(tmp_path)
    runs.written, runs.seconds = {"a": 6 * 10**8}, {"a": [3.0, 2.0]}
    assert runs.throughput("a") == 3e8 and runs.throughput("a", start=1.0) == 6e8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "hf -> onnx"], "no case has 'hf -> onnx' in its name; there are hf -> hf, hf -> llama"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--sizes", "1", "0"], "--sizes above 0"),
    ],
)
def test_command_lines_that_measure_nothing(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        convert.main([*words, "--no-report"])
    assert stopped.value.code == 2 and message in capsys.readouterr().err

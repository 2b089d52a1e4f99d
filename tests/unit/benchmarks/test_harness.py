"""The harness on workers whose times are known: turns, warm-up, medians, and peers that do not count."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.harness import Case, Worker, WorkerError, WorkerSpec, measure, running
from benchmarks.table import Place, Row, lines, outcome

FAKE = Path(__file__).with_name("fake_worker.py")


def spec(tmp_path: Path, name: str, **plan: object) -> WorkerSpec:
    words = json.dumps({"log": str(tmp_path / "turns"), **plan})
    return WorkerSpec([sys.executable, str(FAKE), words])


def case(*workers: str) -> Case:
    return Case("task", workers, {"name": "turn"}, call="work")


def test_workers_take_turns_and_the_first_round_is_not_counted(tmp_path: Path) -> None:
    # Rounds of 100 (warm-up), 1, 2, 6 seconds against 100, 2, 2, 3: ratios of rates 2, 1, 0.5.
    specs = {
        "a": spec(tmp_path, "a", seconds=[100, 1, 2, 6]),
        "b": spec(tmp_path, "b", seconds=[100, 2, 2, 3]),
    }
    with running(specs, start_timeout=60, call_timeout=60) as (workers, unfit):
        results = measure(workers, [case("a", "b")], rounds=3)
    assert unfit == {}
    row = outcome(Row("r", Place("task", "a"), Place("task", "b"), goal=2, floor=1), results, unfit)
    assert row.rounds == [2, 1, 0.5]
    assert row.value == 1
    assert row.ours == 6  # the median of 12, 6 and 2 tokens per second
    assert row.verdict == "floor"
    assert (tmp_path / "turns").read_text().count("turn") == 8


def test_one_worker_is_awake_at_a_time(tmp_path: Path) -> None:
    specs = {name: spec(tmp_path, name, seconds=[1, 1]) for name in ("a", "b")}
    with running(specs, start_timeout=60, call_timeout=60) as (workers, _):

        def are_stopped() -> bool:
            stats = [Path(f"/proc/{worker._process.pid}/stat") for worker in workers.values()]
            if not all(stat.exists() for stat in stats):
                pytest.skip("no /proc here")
            deadline = time.monotonic() + 30  # the signal takes a moment on a busy machine
            while time.monotonic() < deadline:
                if all(stat.read_text().rsplit(")", 1)[1].split()[0] == "T" for stat in stats):
                    return True
                time.sleep(0.01)
            return False

        assert are_stopped()
        workers["a"].call("work", {"name": "turn"})
        assert are_stopped()
        assert workers["a"].about["version"] == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_a_run_that_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "import signal, sys, time\n"
        "from benchmarks.harness import WorkerSpec, running\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with running({'a': WorkerSpec(sys.argv[1:])}, start_timeout=60) as (workers, _):\n"
        "    print(workers['a']._process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    worker = spec(tmp_path, "a", seconds=[]).command
    with subprocess.Popen([sys.executable, "-c", program, *worker], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        os.kill(pid, 0)
        run.send_signal(number)
        assert run.wait(timeout=30) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_unfit_peer_leaves_its_rows_without_a_figure(tmp_path: Path) -> None:
    specs = {
        "a": spec(tmp_path, "a", seconds=[1, 1]),
        "b": spec(tmp_path, "b", seconds=[1, 1], unfit="built without AMX"),
        "c": WorkerSpec(["/no/such/program"], unfit="not built"),
    }
    with running(specs, start_timeout=60, call_timeout=60) as (workers, unfit):
        assert set(workers) == {"a"}
        results = measure(workers, [case("a", "b", "c")], rounds=1)
    row = outcome(Row("r", Place("task", "a"), Place("task", "b"), floor=1), results, unfit)
    assert row.value is None and row.verdict == "no figure"
    assert row.why == "b: built without AMX"
    assert row.ours == 12  # ours is still shown
    assert "built without AMX" in lines([row])[-1]


def test_a_worker_that_fails_is_reported_and_not_asked_again(tmp_path: Path) -> None:
    told: list[tuple[str, str, str]] = []
    specs = {"a": spec(tmp_path, "a", seconds=[], fail=True), "b": spec(tmp_path, "b", seconds=[1, 1, 1])}
    with running(specs, start_timeout=60, call_timeout=60) as (workers, _):
        results = measure(workers, [case("a", "b")], rounds=2, on_failure=lambda *words: told.append(words))
    assert told == [("task", "a", "ValueError: broken engine")]
    assert results["task"]["a"] == [None, None]
    assert all(results["task"]["b"])
    assert (tmp_path / "turns").read_text().count("turn") == 4


def test_a_worker_that_ends_or_does_not_answer_is_an_error(tmp_path: Path) -> None:
    ended = WorkerSpec([sys.executable, "-c", "raise SystemExit('no weights')"])
    with pytest.raises(WorkerError, match="no weights"):
        Worker("a", ended, start_timeout=60, call_timeout=1)
    silent = WorkerSpec([sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(WorkerError, match=r"no answer within 0 s"):
        Worker("b", silent, start_timeout=0.2, call_timeout=1)

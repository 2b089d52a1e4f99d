"""Rows, verdicts, files and the chart; no process is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks import chart, decode, record, soak
from benchmarks.arrivals import Arrival, random_arrivals
from benchmarks.peers.build import HEADER, cmake_arguments
from benchmarks.rows import LLAMA, MEMORY, OURS, all_groups
from benchmarks.shapes import SHAPES
from benchmarks.table import Outcome, Place, Row, outcome
from benchmarks.workers.stopwatch import watching


def test_every_row_names_a_case_and_workers_of_its_group() -> None:
    groups = all_groups()
    names = [row.name for group in groups for row in group.rows]
    assert len(names) == len(set(names))
    for group in groups:
        for row in group.rows:
            for place in row.places:
                assert place.case in group.cases and place.worker in group.workers, row.name
            if row.goal is not None and row.floor is not None:
                assert row.goal <= row.floor if row.lower_is_better else row.goal >= row.floor, row.name


def test_a_selection_runs_only_what_it_needs() -> None:
    [group] = [
        chosen
        for chosen in (group.selected(lambda name: name == "M int4 decode b1") for group in all_groups())
        if chosen.rows
    ]
    assert list(group.workers) == [OURS, LLAMA]
    [turn] = group.turns()
    assert (turn.name, turn.call, turn.workers) == ("decode b1", "decode", (OURS, LLAMA))
    assert turn.arguments["batch"] == 1


def test_kernels_by_themselves_take_part_in_decoding_and_prefill_only() -> None:
    rows = [row for group in all_groups() for row in group.without_engine().rows]
    assert "M int4 decode b1" in {row.name for row in rows}
    assert not [row.name for row in rows if "no compiler" in row.name or "generate" in row.name]


def test_goals_of_another_processor_are_left_out_and_nothing_else() -> None:
    groups = all_groups()
    plain = [row for group in groups for row in group.rows]
    bare = [row for group in groups for row in group.without_goals_against(LLAMA).rows]
    for row, other in zip(plain, bare, strict=True):
        is_beside_llama = row.peer is not None and row.peer.worker == LLAMA
        assert (other.goal, other.floor) == ((None, None) if is_beside_llama else (row.goal, row.floor))
        assert (other.name, other.places) == (row.name, row.places)
    assert any(row.floor is not None for row in plain if row.peer and row.peer.worker == LLAMA)
    assert any(row.floor is not None for row in bare)


@pytest.mark.parametrize(
    ("value", "lower_is_better", "verdict"),
    [(1.2, False, "goal"), (1.05, False, "floor"), (0.9, False, "BELOW"), (1.2, True, "BELOW")],
)
def test_verdicts(value: float, lower_is_better: bool, verdict: str) -> None:
    goal, floor = (0.5, 1.1) if lower_is_better else (1.1, 1.0)
    row = Row("r", Place("c", "w"), goal=goal, floor=floor, lower_is_better=lower_is_better)
    assert Outcome(row, value=value).verdict == verdict
    assert Outcome(Row("r", Place("c", "w")), value=value).verdict == ""


def test_share_of_bandwidth_is_bytes_read_over_bytes_possible() -> None:
    shape = SHAPES["M"]
    assert shape.weights_per_token == 1_439_694_848
    row = Row(
        "share", Place("d", OURS), Place("m", MEMORY), factor=shape.bytes_per_token("int4") / 1e9, unit="%"
    )
    results = {
        "d": {OURS: [{"tokens": 30.0, "seconds": 1.0}]},
        "m": {MEMORY: [{"gigabytes": 30.0, "seconds": 1.0}]},
    }
    assert outcome(row, results, {}).value == pytest.approx(1_439_694_848 * 4.5 / 8 / 1e9)


def test_a_report_is_written_whole_and_drawn(tmp_path: Path) -> None:
    row = Row("M <int4>", Place("c", OURS), Place("c", LLAMA), goal=1.1, floor=1.0)
    outcomes = [Outcome(row, value=1.05, ours=2.1, peer=2.0), Outcome(row, why="not built")]
    report = record.record(
        "benchmarks.decode", ["--rows", "M int4*"], rows=[each.entry() for each in outcomes]
    )
    path = record.write("test", report, tmp_path)
    assert path.name == f"test-{report['date'][:10]}.json"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["command"] == "python -m benchmarks.decode --rows 'M int4*'"
    assert read["machine"]["cores"] >= 1 and read["versions"]["torch"]
    assert [entry["verdict"] for entry in read["rows"]] == ["floor", "no figure"]
    texts = [element.text for element in ElementTree.fromstring(chart.svg(read)).iter() if element.text]
    assert "M <int4>" in texts and "1.05  (2.10 to 2.00)" in texts


def test_no_such_row_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        decode.main(["--rows", "N*"])
    assert stopped.value.code == 2
    assert "no row is called N*" in capsys.readouterr().err
    assert decode.main(["--list", "--rows", "M int8*"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed and all(name.startswith("M int8") for name in listed)


def test_arrivals_are_the_same_for_a_seed_and_survive_the_journey() -> None:
    arrivals = random_arrivals(32, seconds=4, prompts=(16, 256), new_tokens=(8, 40), seed=5)
    again = [Arrival.of(json.loads(json.dumps(arrival.entry()))) for arrival in arrivals]
    assert again == random_arrivals(32, seconds=4, prompts=(16, 256), new_tokens=(8, 40), seed=5)
    assert arrivals == sorted(arrivals, key=lambda arrival: arrival.second)
    assert all(16 <= arrival.prompt <= 256 and 8 <= arrival.new_tokens <= 40 for arrival in arrivals)


def test_the_stopwatch_counts_nested_calls_once_and_goes_away() -> None:
    class Engine:
        def outer(self) -> int:
            return self.inner() + 1

        def inner(self) -> int:
            return 1

    engine = Engine()
    with watching((engine, "outer"), (Engine, "inner")) as spent:
        assert engine.outer() == 2
        once = spent.seconds
    assert 0 < once < 1
    assert "outer" not in vars(engine)
    assert engine.outer() == 2 and spent.seconds == once


def test_the_header_is_handed_to_every_file_of_the_peer() -> None:
    assert "-DGGML_NATIVE=ON" in cmake_arguments() and str(HEADER) in cmake_arguments()


def test_the_slope_is_of_the_last_half_in_mb_per_thousand_requests() -> None:
    loading = [(250 * number, 100.0 * number) for number in range(1, 5)]
    steady = [(250 * number, 500.0 + 0.5 * number) for number in range(5, 9)]
    assert soak.slope([*loading, *steady]) == pytest.approx(2.0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_resident_memory_counts_children() -> None:
    alone = soak.resident_mb(os.getpid())
    words = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None and child.stdout.readline()  # it has started
            assert soak.resident_mb(os.getpid()) > alone + 1
        finally:
            child.kill()

"""`make bench-gpu` without an accelerator: its rows, its refusal, and its workers on a CPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from benchmarks import chart, gpu, record
from benchmarks.shapes import SHAPES
from benchmarks.table import outcome
from benchmarks.workers import gpu_kernels, gpu_telechat, gpu_transformers


def test_rows_name_cases_and_workers_of_their_group() -> None:
    groups = gpu.all_groups(SHAPES["7B"], steps=8)
    names = [row.name for group in groups for row in group.rows]
    assert len(names) == len(set(names))
    for group in groups:
        for row in group.rows:
            for place in row.places:
                assert place.case in group.cases and place.worker in group.workers, row.name
    goals = {row.name: row.goal for group in groups for row in group.rows if row.goal}
    assert goals == {
        "bf16 decode b1, share of memory bandwidth": 0.85,
        "int4 decode b1, share of memory bandwidth": 0.65,
    }


def test_share_of_bandwidth() -> None:
    [group] = [
        one.selected(lambda name: name.startswith("bf16 decode b1, share"))
        for one in gpu.all_groups(SHAPES["7B"], steps=8)[:1]
    ]
    assert list(group.workers) == ["memory", "bf16"]
    # 7.08 billion weights are read for a token: 14.2 GB in bf16.
    results = {
        "decode b1": {"bf16": [{"tokens": 280.0, "seconds": 1.0}]},
        "memory": {"memory": [{"gigabytes": 4.6, "seconds": 0.001}]},
    }
    [row] = group.rows
    found = outcome(row, results, {})
    assert found.value == pytest.approx(280 * 2 * SHAPES["7B"].weights_per_token / 4.6e12)
    assert found.value == pytest.approx(0.86, abs=0.01) and found.verdict == "goal"
    report = {**record.record("benchmarks.gpu", []), "rows": [found.entry()]}
    assert "share of memory" in chart.svg(report)


def test_without_an_accelerator_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert gpu.main([]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no accelerator" in said


def test_the_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--list", "--rows", "*flash-attn 3", "int4*"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "int4 decode b64" in shown and "attention, 4 prompts of 2048 to flash-attn 3" in shown
    assert all(line.startswith("int4") or line.endswith("flash-attn 3") for line in shown)


@pytest.mark.parametrize("weight_format", ["bf16", "int4"])
def test_our_worker(weight_format: str) -> None:
    words = ["--shape", "tiny", "--format", weight_format, "--device", "cpu"]
    cases, about = gpu_telechat.open_worker(words)
    assert cases["decode"](batch=2, prompt=8, steps=3)["tokens"] == 6
    assert cases["prefill"](prompt=40)["tokens"] == 40
    assert about["executor"]
    assert ("int4" in str(about["executor"])) == (weight_format == "int4")


def test_transformers_worker() -> None:
    cases, about = gpu_transformers.open_worker(["--shape", "tiny", "--device", "cpu"])
    assert cases["decode"](batch=2, prompt=8, steps=3)["tokens"] == 6
    assert cases["prefill"](prompt=12)["seconds"] > 0
    assert "dynamic cache" in str(about["configuration"])
    if importlib.util.find_spec("flash_attn") is None:
        words = ["--shape", "tiny", "--device", "cpu", "--attention", "flash_attention_2"]
        assert gpu_transformers.open_worker(words)[1]["unfit"] == "flash-attn is not installed"


@pytest.mark.parametrize("form", ["ours", "torch"])
def test_kernels_worker(form: str) -> None:
    cases, _ = gpu_kernels.open_worker(["--form", form, "--device", "cpu"])
    assert cases["read"]()["gigabytes"] > 0
    assert cases["attention"](batch=2, new=1, length=70)["tokens"] == 2
    assert cases["attention"](batch=1, new=66, length=66)["tokens"] == 66


def test_libraries_that_are_missing_are_named() -> None:
    if importlib.util.find_spec("flash_attn") is None:
        about = gpu_kernels.open_worker(["--form", "flash_attn", "--device", "cpu"])[1]
        assert "flash_attn does not import" in str(about["unfit"])

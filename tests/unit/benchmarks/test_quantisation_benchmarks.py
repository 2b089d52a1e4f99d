"""The benchmarks of quantisation: what they make of times, and one run of each on something tiny."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

import pytest
from benchmarks import int8_products, quantise_7b
from tests.unit.checkpoint.folders import random_model, tensors_of, write_config, write_safetensors
from tests.unit.quant.quant_models import PLAIN

from telechat.ops.cpu import library


def test_ratios_are_of_rounds() -> None:
    times = {
        "int8": [1.0, 2.0],
        "int8, one panel": [0.5, 0.5],
        "bf16": [3.0, 3.0],
        "bf16, one panel": [0.5, 0.0],
        "torch bf16": [4.0, 6.0],
    }
    found = int8_products.ratios(times)
    assert found["int8 to bf16"] == [3.0, 1.5]
    assert found["int8 to bf16, without quantising"] == [5.0, 2.0]
    assert found["int8 to torch bf16"] == [4.0, 3.0]


def test_products_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    if library.obstacle() is not None:
        pytest.skip(f"no CPU kernels: {library.obstacle()}")
    words = ["--rows", "3", "512", "--shapes", "32x64", "--rounds", "2", "--threads", "1", "--no-report"]
    assert int8_products.main(words) == 0
    printed = capsys.readouterr().out
    assert "32x64     3 rows  int8 to bf16 " in printed
    [line] = [line for line in printed.splitlines() if "512 rows  int8 to bf16  " in line]
    assert line.endswith("(goal 1.5)")


def test_thirty_blocks_are_extrapolated() -> None:
    run = quantise_7b.Run(
        190.0, 3 << 30, {0: 60.0, 1: 100.0, 2: 140.0, 3: 180.0}, dict.fromkeys(range(4), 1), 0
    )
    figures = quantise_7b.figures_of(run)
    assert figures["peak_gib"] == 3 and figures["seconds_per_block"] == 40
    assert figures["seconds_to_first_block"] == 60 and figures["seconds_to_write"] == 10
    assert figures["minutes_of_30_blocks"] == pytest.approx((60 + 29 * 40 + 10) / 60, abs=0.1)


def test_a_run_is_watched_killed_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise_7b, "_LOOK_EVERY", 0.002)
    config = PLAIN.replace(vocab_size=8192, num_layers=3)
    write_config(tmp_path / "model", config, torch_dtype="float32")
    write_safetensors(tmp_path / "model", tensors_of(random_model(config)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((quantise_7b._demo_folder() / name).read_bytes())
    rows = tmp_path / "rows.txt"
    quantise_7b.write_rows(rows, 40, 100)
    args = argparse.Namespace(bits=4, rows=40, length=100, blocks=3)
    whole = quantise_7b.quantise(tmp_path / "model", tmp_path / "whole", rows, args)
    assert whole.exit_code == 0 and whole.blocks and whole.peak_bytes > 2**25
    assert set(quantise_7b.layers_of_a_block(tmp_path / "whole")) == {
        *(f"self_attention.{name}.weight" for name in ("query", "key_value", "dense")),
        *(f"mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")),
    }
    found = quantise_7b.killed_and_resumed(tmp_path / "model", tmp_path, rows, args)
    assert found["same_files"] and found["exit_code_of_killed"] in (-signal.SIGKILL, 0)

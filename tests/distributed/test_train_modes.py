"""Adapters and preferences on two processes train as on one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.distributed.test_train_launch import losses, start
from tests.distributed.test_train_layouts import check
from tests.distributed.train_cases import Case, start_ranks

LORA = {"rank": 3, "alpha": 6.0}

CASES = [
    Case(name="dp2-zero3-lora", layouts=[{"dp": 2, "zero_stage": 3}], lora=LORA, steps=6),
    Case(name="dp2-zero3-dora", layouts=[{"dp": 2, "zero_stage": 3}], lora={**LORA, "dora": True}, steps=6),
    Case(
        name="dp2-zero3-qlora",
        layouts=[{"dp": 2, "zero_stage": 3}],
        model={"inner": 64},  # which groups of 32 divide
        lora={**LORA, "quantize": "int4"},
        steps=6,
    ),
    Case(name="tp2-lora", layouts=[{"tp": 2}], lora=LORA, steps=6),
    Case(name="tp2-mqa-lora", layouts=[{"tp": 2}], model={"kv_heads": 1}, lora=LORA, steps=6),
    Case(name="pp2-lora", layouts=[{"pp": 2}], lora=LORA, steps=6),
    Case(name="dp2-dpo", layouts=[{"dp": 2, "zero_stage": 3}], preference={"loss": "dpo"}, steps=6),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modes")
    start_ranks(CASES, 2, folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_train_like_one(case: Case, folder: Path) -> None:
    check(case, folder)


def test_a_whole_run_on_judged_answers(tiny_model_folder: Path, tmp_path: Path) -> None:
    """References are measured by both processes, each its share, and both are shown all of them."""
    from telechat.train.run import main

    rows = [
        {"prompt": f"hello {n}", "completion": "world" if n % 2 else f"{n}, {n}", "label": bool(n % 2)}
        for n in range(9)
    ]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{start_from: '{tiny_model_folder}'}}\n"
        f"data: {{train_file: '{tmp_path}/votes.jsonl', max_length: 256}}\n"
        f"output: {{folder: '{tmp_path}/alone', log_every: 1}}\n"
        "batch: {tokens_per_step: 3000, micro_batches: 2}\n"
        "schedule: {total_steps: 4, name: constant}\n"
        "optimizer: {lr: 0.01, eps: 1.0e-4}\n"
        "preference: {loss: kto}\n"
        "lora: {rank: 4}\n"
        "precision: fp32\n"
        "device: cpu\n"
    )
    process = start(
        *("--nproc-per-node", "2", "--log-dir", str(tmp_path / "logs")),
        *("--", "train", "--config", str(recipe), "--output.folder", str(tmp_path / "both")),
    )
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0, out
    main(str(recipe))
    alone, both = losses(tmp_path / "alone"), losses(tmp_path / "both")
    assert len(alone) == 4 and alone[0] == pytest.approx(0.5, abs=1e-3) and alone[-1] < alone[0]
    assert both == pytest.approx(alone, rel=1e-4)

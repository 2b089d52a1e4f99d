"""Adapters and preferences on two processes train as on one."""

from __future__ import annotations

from pathlib import Path

import pytest
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

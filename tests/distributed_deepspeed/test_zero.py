"""DeepSpeed's ZeRO stages train like one process; run by `make oracles`, which installs it apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.distributed.test_train_layouts import check
from tests.distributed.train_cases import Case, start_ranks

pytestmark = pytest.mark.oracle


def zero(stage: int, **options: Any) -> dict[str, Any]:
    return {"engine": "deepspeed", "zero_stage": stage, **options}


CASES = [
    Case(name="zero0", layouts=[zero(0)]),
    Case(name="zero1", layouts=[zero(1)]),
    Case(name="zero2", layouts=[zero(2)]),
    Case(name="zero3", layouts=[zero(3)], model={"tied": True}, packed=True),
    Case(name="zero2-offload", layouts=[zero(2, offload=True)]),
    Case(name="zero3-offload", layouts=[zero(3, offload=True)]),
    Case(name="zero2-bf16", layouts=[zero(2)], precision="bf16", steps=3),
    Case(name="zero3-fp16", layouts=[zero(3)], precision="fp16", steps=3),
    Case(
        name="resumed-with-either-engine",
        layouts=[zero(2), {"dp": 2}, zero(3), {"tp": 2}],
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepspeed")
    start_ranks(CASES, 2, folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_train_like_one(case: Case, folder: Path) -> None:
    check(case, folder)

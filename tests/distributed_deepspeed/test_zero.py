"""DeepSpeed's ZeRO stages train like one process; run by `make oracles`, which installs it apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.test_train_layouts import check
from tests.distributed.train_cases import Case, start_ranks

from telechat.errors import ConfigError
from telechat.train.distributed.deepspeed import _check_precision

pytestmark = pytest.mark.oracle

# DeepSpeed's own condition for fp16 on a processor.
_HAS_FP16 = torch.ops.mkldnn._is_mkldnn_fp16_supported()


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
    start_ranks([case for case in CASES if _HAS_FP16 or case.precision != "fp16"], 2, folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_train_like_one(case: Case, folder: Path) -> None:
    if case.precision == "fp16" and not _HAS_FP16:
        pytest.skip("DeepSpeed does not train in fp16 on a processor without instructions for it")
    check(case, folder)


def test_fp16_is_refused_where_deepspeed_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    import deepspeed

    if _HAS_FP16:
        _check_precision(deepspeed, "fp16")
    else:
        with pytest.raises(ConfigError, match="does not train in fp16"):
            _check_precision(deepspeed, "fp16")
    _check_precision(deepspeed, "bf16")

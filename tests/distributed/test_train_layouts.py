"""Layouts of two and four processes, and modes on them, train like one process and save the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.distributed.train_cases import Case, expected, result, start_ranks

MOE = {"experts": 4}
DEEP = {"layers": 4}
LORA = {"rank": 3, "alpha": 6.0}

TWO = [
    Case(name="dp2-zero3-offload", layouts=[{"dp": 2, "zero_stage": 3, "offload": True}]),
    Case(name="dp2-zero2", layouts=[{"dp": 2, "zero_stage": 2}], model={"tied": True}, packed=True),
    Case(name="dp2-zero1", layouts=[{"dp": 2, "zero_stage": 1}], steps=3),
    Case(name="dp2-zero0", layouts=[{"dp": 2, "zero_stage": 0}], steps=3),
    Case(name="tp2", layouts=[{"tp": 2}]),
    Case(
        name="tp2-mqa-tied-packed",
        layouts=[{"tp": 2}],
        model={"kv_heads": 1, "tied": True},
        packed=True,
        steps=6,
    ),
    Case(name="tp2-moe", layouts=[{"tp": 2}], model=MOE, steps=3),
    Case(name="pp2", layouts=[{"pp": 2}]),
    Case(
        name="pp2-tied-uneven",
        layouts=[{"pp": 2, "pp_offset": [1, -1]}],
        model={**DEEP, "tied": True},
        steps=3,
    ),
    Case(name="pp2-interleaved-moe", layouts=[{"pp": 2, "pp_interleave": 2}], model={**DEEP, **MOE}, steps=3),
    Case(name="pp2-offload", layouts=[{"pp": 2, "offload": True}], steps=3),
    Case(name="cp2", layouts=[{"cp": 2}]),
    Case(name="cp2-packed-recompute", layouts=[{"cp": 2}], packed=True, recompute="full", steps=3),
    Case(name="cp2-heads", layouts=[{"cp": 2, "context": "heads"}], packed=True, steps=3),
    Case(name="cp2-heads-mqa", layouts=[{"cp": 2, "context": "heads"}], model={"kv_heads": 1}, steps=3),
    Case(name="cp2-moe", layouts=[{"cp": 2}], model=MOE, steps=3),
    Case(name="ep2", layouts=[{"ep": 2}], model=MOE),
    Case(name="dp2-bf16", layouts=[{"dp": 2}], precision="bf16", steps=3),
    Case(name="tp2-bf16-pure", layouts=[{"tp": 2}], precision="bf16-pure", steps=3),
    Case(name="pp2-bf16-pure", layouts=[{"pp": 2}], precision="bf16-pure", steps=3),
    Case(name="cp2-fp16", layouts=[{"cp": 2}], precision="fp16", steps=3),
    Case(
        name="resharded",
        layouts=[{"tp": 2}, {"dp": 2}, {"pp": 2}, {"cp": 2, "zero_stage": 0}],
        model={"kv_heads": 1, "tied": True},
        steps=8,
    ),
    Case(name="dp2-whole", layouts=[{"dp": 2}], steps=8),
    Case(name="dp2-resumed", layouts=[{"dp": 2}, {"dp": 2}], steps=8),
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

FOUR = [
    Case(name="dp2-tp2", layouts=[{"dp": 2, "tp": 2}], packed=True),
    Case(name="tp2-pp2", layouts=[{"tp": 2, "pp": 2}], model={"tied": True}),
    Case(name="dp2-cp2", layouts=[{"dp": 2, "cp": 2}], packed=True),
    Case(name="ep2-dp2", layouts=[{"ep": 2, "dp": 2}], model=MOE, recompute="selective"),
    Case(name="dp2-pp2", layouts=[{"dp": 2, "pp": 2}], steps=3),
    Case(name="pp2-cp2", layouts=[{"pp": 2, "cp": 2}], model=MOE, packed=True, steps=3),
    Case(name="tp2-cp2", layouts=[{"tp": 2, "cp": 2}], model={"kv_heads": 1}, packed=True, steps=3),
    Case(name="tp2-ep2", layouts=[{"tp": 2, "ep": 2}], model=MOE, steps=3),
    Case(name="cp4", layouts=[{"cp": 4}], packed=True, steps=3),
    Case(name="tp4-gqa", layouts=[{"tp": 4}], model={"kv_heads": 2, "tied": True}, steps=3),
    Case(name="pp4", layouts=[{"pp": 4}], model=DEEP, steps=3),
    Case(
        name="resharded-4",
        layouts=[{"tp": 2, "dp": 2}, {"ep": 2, "cp": 2, "zero_stage": 2}, {"pp": 2, "dp": 2}],
        model=MOE,
        steps=9,
    ),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    start_ranks(TWO, 2, folder)
    return folder


@pytest.mark.parametrize("case", TWO, ids=lambda case: case.name)
def test_two_processes_train_like_one(case: Case, two: Path) -> None:
    check(case, two)


def test_a_run_that_is_resumed_on_the_same_processes_ends_bitwise_equal(two: Path) -> None:
    whole, resumed = (
        result(next(case for case in TWO if case.name == f"dp2-{name}"), two) for name in ("whole", "resumed")
    )
    assert resumed["losses"] == whole["losses"]
    assert all(torch.equal(resumed["weights"][name], weight) for name, weight in whole["weights"].items())


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    start_ranks(FOUR, 4, folder)
    return folder


@pytest.mark.parametrize("case", FOUR, ids=lambda case: case.name)
def test_four_processes_train_like_one(case: Case, four: Path) -> None:
    check(case, four)


def check(case: Case, folder: Path) -> None:
    """Losses over all steps to 1e-4 (seen: 1e-6), norms, the evaluation, and weights under all names."""
    found, alone = result(case, folder), expected(case)
    if case.precision != "fp32":
        # Sums over ranks are rounded at other places.
        torch.testing.assert_close(found["losses"], alone["losses"], rtol=1e-2, atol=0)
        torch.testing.assert_close(found["norms"][0], alone["norms"][0], rtol=2e-2, atol=0)
        return
    torch.testing.assert_close(found["losses"], alone["losses"], rtol=1e-4, atol=0)
    # The first gradient is that of equal weights.
    torch.testing.assert_close(found["norms"][0], alone["norms"][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found["evaluated"], alone["evaluated"], rtol=1e-4, atol=0)
    assert list(found["weights"]) == list(alone["weights"])
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(
            found["weights"][name], weight, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )

"""Predicted memory beside what steps of small models really take, within a twentieth: every option counts."""

from __future__ import annotations

import dataclasses

import pytest
from tests.unit.train.plan.measured_step import measure, request, tiny_config

from telechat.layers.moe import MoeConfig
from telechat.train.config import LoraSection
from telechat.train.plan import PlanRequest, predict

PLAIN = tiny_config()
WIDE = tiny_config(vocab_size=12000)

RUNS = {
    "fp32": request(PLAIN),
    "bf16": request(PLAIN, precision="bf16"),
    "bf16-pure": request(PLAIN, precision="bf16-pure"),
    "full recomputation": request(PLAIN, recompute="full"),
    "full recomputation, bf16": request(PLAIN, recompute="full", precision="bf16"),
    "selective recomputation": request(PLAIN, recompute="selective", precision="bf16"),
    "several micro batches": request(WIDE, micro_batches=3),
    "packed": request(PLAIN, packed=True, rows=1, length=1024),
    "a large vocabulary": request(WIDE, rows=1),
    "a tied head": request(tiny_config(vocab_size=12000, tie_word_embeddings=True), micro_batches=2),
    "reference attention": request(PLAIN, attention="reference"),
    "reference attention, bf16": request(PLAIN, attention="reference", precision="bf16", recompute="full"),
    "few key/value heads": request(tiny_config(num_kv_heads=1)),
    "dropout": request(tiny_config(hidden_dropout=0.1)),
    "dropout of scores": request(tiny_config(attention_dropout=0.1)),
    "an adapter": request(PLAIN, lora=LoraSection()),
    "an adapter, bf16": request(PLAIN, lora=LoraSection(), precision="bf16"),
    "an adapter on one layer": request(PLAIN, lora=LoraSection(targets=("query",)), precision="bf16-pure"),
    "dora": request(PLAIN, lora=LoraSection(dora=True)),
    "a mixture": request(tiny_config(moe=MoeConfig(num_experts=4, num_experts_per_token=2))),
    "8-bit moments": request(WIDE, rows=1, length=64, optimizer="adamw-8bit"),
    "muon": request(PLAIN, rows=1, length=32, optimizer="muon"),
}


@pytest.mark.parametrize("name", RUNS)
def test_predicted_is_measured(name: str) -> None:
    run = RUNS[name]
    assert predict(run).device_bytes == pytest.approx(measure(run), rel=0.05)


def changed(**changes: object) -> tuple[PlanRequest, PlanRequest]:
    """A run, and one that differs in what is named."""
    return RUNS["fp32"], dataclasses.replace(RUNS["fp32"], **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"length": 512},
        {"rows": 4},
        {"micro_batches": 2},
        {"learnt_share": 0.25},
        {"packed": True, "length": 2048},
        {"precision": "bf16"},
        {"attention": "reference"},
        {"recompute": "full"},
        {"optimizer": "adamw-8bit"},
        {"program_bytes": 10},
    ],
    ids=str,
)
def test_no_setting_is_ignored(changes: dict[str, object]) -> None:
    before, after = changed(**changes)
    assert predict(before).rows != predict(after).rows


def test_an_accelerator_has_other_buffers() -> None:
    there = dataclasses.replace(RUNS["dropout"], on_accelerator=True)
    assert predict(there).row("activations") != predict(RUNS["dropout"]).row("activations")

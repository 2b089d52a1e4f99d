"""Operations of a step against torch's own counter, and the rate they are compared with."""

from __future__ import annotations

import pytest
import torch
from tests.unit.train.test_engine import ROWS, packed_batch, rows_batch
from tests.unit.train.test_loop import TINY, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from telechat.device import CPU
from telechat.train.flops import matmul_rate, slower_than_fp32, step_cost
from telechat.train.forward import hidden_states
from telechat.train.setup import choose_training_attention


@pytest.mark.parametrize("tied", [False, True])
def test_operations_equal_those_that_torch_counts(tied: bool) -> None:
    """The counter sees attention's whole square; ours counts what a token sees, the diagonal included."""
    config = TINY.replace(tie_word_embeddings=tied)
    model = tiny_model(config)
    # The counter knows no fused attention on a CPU.
    choose_training_attention(model, "reference", torch.float32, "cpu")
    batch = rows_batch([list(range(4, 36))] * 4, length=32)
    with FlopCounterMode(display=False) as counter:
        hidden, _ = hidden_states(model, batch, dtype=torch.float32)
        model.project(hidden[:, :-1]).sum().backward()  # type: ignore[no-untyped-call]
    cost = step_cost(config, model.named_parameters())
    unseen = 4 * (32 * 32 - 32 * 33 / 2)
    assert counter.get_total_flops() == pytest.approx(cost.of(batch) + cost.per_pair * unseen)


def test_packed_conversations_do_not_pay_for_one_another() -> None:
    cost = step_cost(TINY, tiny_model().named_parameters())
    packed, apart = packed_batch([ROWS], length=20), rows_batch(ROWS, length=8)
    assert cost.of(packed) == pytest.approx(cost.of(apart))


def test_frozen_weights_need_no_gradient() -> None:
    model = tiny_model()
    whole = step_cost(TINY, model.named_parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert step_cost(TINY, model.named_parameters()).per_token == pytest.approx(whole.per_token * 2 / 3)


def test_the_matmul_rate_is_one() -> None:
    assert 1e7 < matmul_rate(CPU, torch.float32) < 1e14


def test_a_slow_format_is_tried_small_and_told_from_a_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the clock: 1e9 operations a second in bf16, 1e11 in fp32."""
    tried: list[int] = []

    def seconds(a: torch.Tensor) -> float:
        tried.append(len(a))
        return 2 * len(a) ** 3 / (1e9 if a.dtype == torch.bfloat16 else 1e11)

    monkeypatch.setattr("telechat.train.flops._product_s", seconds)
    rate = matmul_rate(CPU, torch.bfloat16)
    assert rate == pytest.approx(1e9)
    assert max(tried) == 256  # 34 ms; 1024 would be 2 s
    assert slower_than_fp32(CPU, rate) == pytest.approx(100)
    assert slower_than_fp32(CPU, 5e10) is None
    assert max(tried) == 1024

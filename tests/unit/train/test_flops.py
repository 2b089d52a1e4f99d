"""Operations of a step against torch's own counter, and the rate they are compared with."""

from __future__ import annotations

import pytest
import torch
from tests.unit.train.test_engine import ROWS, packed_batch, rows_batch
from tests.unit.train.test_loop import TINY, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from telechat.device import CPU
from telechat.train.flops import matmul_rate, step_cost
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


def test_the_matmul_rate_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telechat.train.flops._CPU_EXTENT", 128)
    assert 1e7 < matmul_rate(CPU, torch.float32) < 1e14

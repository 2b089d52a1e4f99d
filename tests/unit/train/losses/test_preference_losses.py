"""The four preference losses equal TRL's on fixed log-probabilities, with their gradients."""

from __future__ import annotations

import pytest
import torch
from tests.unit.train.losses.preference_cases import (
    SETTINGS,
    log_probabilities,
    our_loss,
    recorded,
    value_and_gradients,
)

from telechat.train.losses.kto import kto_baseline
from telechat.train.losses.orpo import orpo_loss


@pytest.mark.parametrize(
    ("loss", "number"), [(n, i) for n, all_ in SETTINGS.items() for i in range(len(all_))]
)
def test_equals_trl(loss: str, number: int) -> None:
    settings = SETTINGS[loss][number]
    got = value_and_gradients(lambda inputs: our_loss(loss, inputs, settings), log_probabilities(loss))
    torch.testing.assert_close(got, recorded()[loss][number], rtol=1e-5, atol=1e-7)


def test_the_baseline_is_never_below_zero() -> None:
    moved = kto_baseline(torch.tensor([-5.0, -4.0]), torch.tensor([-3.0, -2.0]))
    assert moved == 0
    assert kto_baseline(torch.tensor([-3.0, -2.0]), torch.tensor([-5.0, -4.5])) == 2.25


@pytest.mark.parametrize("log_probability", [-1e-6, -0.1, -0.6931, -0.7, -30.0, -200.0])
def test_odds_stay_finite_for_sure_and_for_hopeless_answers(log_probability: float) -> None:
    chosen = torch.tensor([log_probability], requires_grad=True)
    loss = orpo_loss(chosen, torch.tensor([-1.0]), beta=0.1)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and chosen.grad is not None and torch.isfinite(chosen.grad).all()
    exact = chosen.detach().double()
    odds = (exact + 1) - (
        torch.log(-torch.expm1(exact)) - torch.log(-torch.expm1(torch.tensor(-1.0).double()))
    )
    expected = -exact - 0.1 * torch.nn.functional.logsigmoid(odds)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=1e-6)

"""AdamW with moments of one byte each: right on average, small, and near AdamW in what it does."""

from __future__ import annotations

import pytest
import torch

from telechat.train.adamw8bit import AdamW8bit, decode, encode


@pytest.mark.parametrize("signed", [True, False])
def test_numbers_come_back_within_a_step_and_on_average(signed: bool) -> None:
    torch.manual_seed(0)
    value = torch.randn(4, 512) * torch.logspace(-6, 2, 4)[:, None]
    value = value if signed else value.square()
    value[:, :5] = 0
    decoded = torch.stack([decode(*encode(value, signed=signed)) for _ in range(200)])
    inside = value.abs() > value.abs().amax(1, keepdim=True) * 2.0**-31
    ratio = decoded / value
    assert (ratio[:, inside] - 1).abs().max() < (0.20 if signed else 0.10)
    assert (decoded.mean(0) / value)[inside].sub(1).abs().max() < 0.03
    assert (decoded[:, value == 0] == 0).all()


def test_the_second_moment_never_rounds_to_zero() -> None:
    """It divides: a zero would make a step of any size."""
    value = torch.tensor([[1.0, 1e-30, 0.0]])
    codes, scale = encode(value, signed=False)
    assert codes.tolist() == [[255, 1, 0]]
    assert decode(codes, scale)[0, 1] == pytest.approx(2.0**-32)


def trained(
    make: type[torch.optim.Optimizer], **settings: float
) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    """Weights [16, 16] after 200 steps towards a target."""
    torch.manual_seed(1)
    target = torch.randn(16, 16)
    weight = torch.nn.Parameter(torch.zeros(16, 16))
    bias = torch.nn.Parameter(torch.zeros(16))
    optimizer = make([weight, bias], lr=0.02, betas=(0.9, 0.999), eps=1e-8, **settings)  # type: ignore[call-arg]
    for _ in range(200):
        optimizer.zero_grad()
        noise = torch.randn(16, 16) * 0.1
        ((weight + bias + noise - target) ** 2).sum().backward()
        optimizer.step()
    return (weight + bias - target).detach(), optimizer


def test_it_gets_as_far_as_adamw() -> None:
    ours, _ = trained(AdamW8bit, weight_decay=0.0)
    theirs, _ = trained(torch.optim.AdamW, weight_decay=0.0)
    assert ours.abs().mean() < 1.3 * theirs.abs().mean() + 0.01


def test_its_first_step_is_that_of_adamw_with_decay() -> None:
    """The moments of the first step have not been stored yet."""
    weights = []
    for make in (AdamW8bit, torch.optim.AdamW):
        torch.manual_seed(2)
        weight = torch.nn.Parameter(torch.randn(8, 8))
        optimizer = make([weight], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3)
        (weight**3).sum().backward()
        optimizer.step()
        weights.append(weight.detach())
    torch.testing.assert_close(weights[0], weights[1])


def test_a_matrix_has_two_bytes_a_number_and_a_vector_fp32() -> None:
    _, optimizer = trained(AdamW8bit)
    matrix, vector = (optimizer.state[p] for p in optimizer.param_groups[0]["params"])
    assert matrix["exp_avg"].dtype == torch.int8 and matrix["exp_avg_sq"].dtype == torch.uint8
    assert sum(t.nbytes for t in matrix.values()) == 2 * 256 + 2 * 16 * 4 + 4
    assert vector["exp_avg"].dtype == torch.float32

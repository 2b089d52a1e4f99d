"""Chunked cross-entropy equals torch's: value, gradients, weights, z-loss, ignored tokens, split heads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from telechat.train.batch import IGNORED
from telechat.train.losses import cross_entropy as module
from telechat.train.losses.cross_entropy import chunked_cross_entropy, token_log_probabilities

N, H, V = 37, 16, 1000


@pytest.fixture(autouse=True)
def narrow_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one narrower."""
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS_CPU", 1)


def case(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(N, H, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (N,), generator=generator)
    targets[:3] = torch.tensor([0, V - 1, 768])  # first and last word, first of the last chunk
    targets[5::4] = IGNORED
    return hidden, weight, targets


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    """Largest error relative to the largest value."""
    error = (got.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= tolerance, float(error)


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_torch(z_loss: float, weighted: bool) -> None:
    hidden, weight, targets = case()
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1)) if weighted else None
    got = chunked_cross_entropy(hidden, weight, targets, weights_N=weights, z_loss=z_loss)
    logits = hidden.double() @ weight.double().T
    losses = F.cross_entropy(logits, targets, reduction="none")
    losses = losses + z_loss * torch.where(targets == IGNORED, 0.0, logits.logsumexp(1).square())
    expected = (losses * (1.0 if weights is None else weights)).sum()
    close(got, expected)
    for ours, theirs in zip(gradients(got, hidden, weight), gradients(expected, hidden, weight), strict=True):
        close(ours, theirs)


def test_products_are_rounded_as_under_autocast_and_sums_are_not() -> None:
    hidden, weight, targets = case()
    with torch.autocast("cpu", torch.bfloat16):
        got = chunked_cross_entropy(hidden, weight, targets)
        expected = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    assert got.dtype == torch.float32
    close(got, expected, 1e-6)
    for ours, theirs in zip(gradients(got, hidden, weight), gradients(expected, hidden, weight), strict=True):
        assert ours.dtype == torch.float32
        close(ours, theirs, 2**-8)


def test_bf16_weights_get_bf16_gradients() -> None:
    hidden, weight, targets = case(torch.bfloat16)
    got = gradients(chunked_cross_entropy(hidden, weight, targets), hidden, weight)
    assert [gradient.dtype for gradient in got] == [torch.bfloat16, torch.bfloat16]


def test_a_frozen_head_gets_no_gradient_and_hidden_states_still_do() -> None:
    hidden, weight, targets = case()
    (expected,) = gradients(chunked_cross_entropy(hidden, weight, targets), hidden)
    loss = chunked_cross_entropy(hidden, weight.detach(), targets)
    close(gradients(loss, hidden)[0], expected)


def test_log_probabilities_stand_at_their_tokens() -> None:
    hidden, weight, targets = case()
    got = token_log_probabilities(hidden, weight, targets)
    everything = F.log_softmax(hidden @ weight.T, -1)
    expected = torch.where(targets == IGNORED, 0.0, everything.gather(1, targets.clamp(min=0)[:, None])[:, 0])
    close(got, expected)
    factors = torch.linspace(-1, 1, N)  # each token its own gradient
    for ours, theirs in zip(
        gradients((got * factors).sum(), hidden, weight),
        gradients((expected * factors).sum(), hidden, weight),
        strict=True,
    ):
        close(ours, theirs)


def test_nothing_to_learn_is_zero_with_zero_gradients() -> None:
    hidden, weight, targets = case()
    loss = chunked_cross_entropy(hidden, weight, torch.full_like(targets, IGNORED))
    assert loss == 0
    assert all(not gradient.any() for gradient in gradients(loss, hidden, weight))


def test_a_head_split_over_ranks_gives_the_whole_ones_loss() -> None:
    """Two ranks one after the other: each learns the other's sums from a first call."""
    hidden, weight, targets = case()
    expected = chunked_cross_entropy(hidden, weight, targets)
    parts = [(0, weight[:600]), (600, weight[600:])]
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def listen(largest: Tensor, sums: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen.append((largest, sums, target))
        return largest, sums, target

    def merge(largest: Tensor, sums: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        of_all = torch.maximum(seen[0][0], seen[1][0])
        return (
            of_all,
            sum(rank[1] * torch.exp(rank[0] - of_all) for rank in seen),
            seen[0][2] + seen[1][2],
        )

    for first, part in parts:
        chunked_cross_entropy(hidden, part, targets, first_word=first, merge=listen)
    hidden_gradient = torch.zeros_like(hidden)
    weight_gradient = torch.zeros_like(weight)
    for first, part in parts:
        loss = chunked_cross_entropy(hidden, part, targets, first_word=first, merge=merge)
        close(loss, expected)
        of_hidden, of_weight = gradients(loss, hidden, weight)
        hidden_gradient += of_hidden
        weight_gradient += of_weight
    for ours, theirs in zip(
        (hidden_gradient, weight_gradient), gradients(expected, hidden, weight), strict=True
    ):
        close(ours, theirs)


def test_no_tensor_of_all_logits_is_ever_made() -> None:
    """Sizes of everything allocated during forward and backward stay below tokens times words."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    hidden, weight, targets = case()
    with Watch():
        chunked_cross_entropy(hidden, weight, targets).backward()
    # Learnt tokens are padded to 256 rows; a chunk is 256 words wide.
    assert largest <= max(256 * 256, V * H) < 256 * V

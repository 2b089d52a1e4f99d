"""The one-process engine: gradients of the step's mean, packed rows that do not leak, clipping, fp16."""

from __future__ import annotations

import pytest
import torch
from tests.unit.train.test_loop import TINY, tiny_model

from telechat.layers.moe import MoeConfig
from telechat.train.batch import IGNORED, Batch
from telechat.train.config import OptimizerSection
from telechat.train.engine import LocalEngine
from telechat.train.objective import CrossEntropy


def rows_batch(rows: list[list[int]], *, length: int) -> Batch:
    """One row each, padded on the right."""
    return packed_batch([[row] for row in rows], length=length)


def packed_batch(packs: list[list[list[int]]], *, length: int) -> Batch:
    """Several conversations per row."""
    shape = (len(packs), length)
    ids = torch.full(shape, 3)
    positions, targets = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
    segments = torch.full(shape, -1, dtype=torch.int32)
    for index, pack in enumerate(packs):
        start = 0
        for number, row in enumerate(pack):
            span = slice(start, start + len(row))
            ids[index, span] = torch.tensor(row)
            positions[index, span] = torch.arange(len(row))
            segments[index, span] = number
            targets[index, start : start + len(row) - 1] = torch.tensor(row[1:])
            start += len(row)
    packed = any(len(pack) > 1 for pack in packs)
    return Batch(ids=ids, positions=positions, segments=segments, targets=targets, is_packed=packed)


def engine(precision: str = "fp32") -> LocalEngine:
    return LocalEngine(tiny_model(), CrossEntropy(), OptimizerSection(lr=1e-2), precision)  # type: ignore[arg-type]


ROWS = [[4, 5, 6, 7, 8, 9], [20, 21, 22, 23], [30, 31, 32, 33, 34, 35, 36]]


def gradients(of: LocalEngine) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in of.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cut", ["one row each", "packed", "two batches", "packed with padding"])
def test_every_way_to_batch_gives_the_same_gradients(cut: str) -> None:
    """Positions and attention restart in a packed row, and every learnt token weighs alike."""
    whole = engine()
    expected = whole.backward([rows_batch(ROWS, length=8)])
    batches = {
        "one row each": [rows_batch([row], length=7) for row in ROWS],
        "packed": [packed_batch([ROWS], length=17)],
        "two batches": [rows_batch(ROWS[:1], length=6), packed_batch([ROWS[1:]], length=12)],
        "packed with padding": [packed_batch([ROWS[:2], ROWS[2:]], length=13)],
    }[cut]
    other = engine()
    got = other.backward(batches)
    assert got.count == expected.count == sum(len(row) - 1 for row in ROWS)
    torch.testing.assert_close(got.total, expected.total)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(other)[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_weights_scale_targets() -> None:
    batch = rows_batch(ROWS[:2], length=8)
    weights = torch.zeros(batch.ids.shape)
    weights[0] = 2.0
    weighted = Batch(**{**vars(batch), "weights": weights})
    of, alone = engine(), engine()
    got, expected = of.backward([weighted]), alone.backward([rows_batch(ROWS[:1], length=8)])
    torch.testing.assert_close(got.mean, expected.mean)
    for name, gradient in gradients(alone).items():
        torch.testing.assert_close(gradients(of)[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_clipping_brings_the_norm_down() -> None:
    of = engine()
    of.backward([rows_batch(ROWS, length=8)])
    norm = of.clip(0)
    assert of.clip(norm / 4) == pytest.approx(norm)
    assert of.clip(0) == pytest.approx(norm / 4, rel=1e-4)


def test_the_norm_of_bf16_gradients_has_all_its_digits() -> None:
    of = LocalEngine(tiny_model().to(torch.bfloat16), CrossEntropy(), OptimizerSection(), "bf16-pure")
    of.backward([rows_batch(ROWS, length=8)])
    squares = sum(float(gradient.double().square().sum()) for gradient in gradients(of).values())
    assert of.clip(0) == pytest.approx(squares**0.5, rel=1e-6)


def test_the_loss_scale_of_fp16_cancels() -> None:
    scaled, plain = engine("fp16"), engine("fp16")
    plain.loss_scale.scale = 1.0
    for of in (scaled, plain):
        of.backward([rows_batch(ROWS, length=8)])
        of.clip(0)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(scaled)[name], gradient, atol=2e-3, rtol=2e-2, msg=name)


def test_a_fresh_state_equals_that_after_a_step_in_names_and_shapes() -> None:
    of = engine()
    fresh = {name: {k: v.shape for k, v in state.items()} for name, state in of.optimizers.state().items()}
    trained = engine()
    trained.backward([rows_batch(ROWS, length=8)])
    trained.step(1.0)
    after = {n: {k: v.shape for k, v in s.items()} for n, s in trained.optimizers.state().items()}
    assert fresh == after
    assert set(of.state()["model"]) == {name for name, _ in of.model.named_parameters()}


def test_a_mixture_does_not_see_padding() -> None:
    """Rows and columns of padding change neither the balancing loss nor what an expert's capacity drops."""
    moe = MoeConfig(num_experts=4, num_experts_per_token=2, aux_loss_factor=0.5, capacity_factor=0.75)
    config = TINY.replace(moe=moe)

    def trained(length: int, empty: int) -> tuple[float, dict[str, torch.Tensor]]:
        of = LocalEngine(tiny_model(config), CrossEntropy(), OptimizerSection(), "fp32")
        batch = packed_batch([[row] for row in ROWS] + [[]] * empty, length=length)
        return float(of.backward([batch]).mean), gradients(of)

    loss, expected = trained(7, 0)
    padded_loss, got = trained(16, 5)
    assert padded_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_the_balancing_loss_is_for_training_only() -> None:
    losses = []
    for factor in (0.0, 5.0):
        moe = MoeConfig(num_experts=4, num_experts_per_token=2, aux_loss_factor=factor)
        of = LocalEngine(tiny_model(TINY.replace(moe=moe)), CrossEntropy(), OptimizerSection(), "fp32")
        batch = rows_batch(ROWS, length=8)
        losses.append([float(of.evaluate([batch]).mean), float(of.backward([batch]).mean)])
    assert losses[0][0] == losses[1][0] == pytest.approx(losses[0][1])
    assert losses[1][1] > losses[0][1] + 5


def test_z_loss_is_added() -> None:
    of = LocalEngine(tiny_model(), CrossEntropy(z_loss=0.1), OptimizerSection(), "fp32")
    batch = rows_batch(ROWS[:1], length=6)
    logits = of.model(batch.ids)[0, :-1].detach()
    expected = engine().evaluate([batch]).mean + 0.1 * logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(of.evaluate([batch]).mean, expected)

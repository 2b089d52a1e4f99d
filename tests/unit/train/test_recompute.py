"""Recomputation changes what is kept for the backward pass and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.train.test_engine import ROWS, rows_batch
from tests.unit.train.test_loop import TINY, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from telechat.train.config import OptimizerSection
from telechat.train.engine import LocalEngine
from telechat.train.objective import CrossEntropy
from telechat.train.recompute import Recompute, apply_recompute


def run(mode: Recompute, *, compiled: bool = False) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a step, and the bytes that the forward pass kept for the backward pass."""
    model = tiny_model(TINY.replace(hidden_dropout=0.1))
    apply_recompute(model.transformer.blocks, mode, compiled=compiled)
    engine = LocalEngine(model, CrossEntropy(), OptimizerSection(), "fp32")
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = engine._loss(rows_batch(ROWS * 8, length=32))
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, sum(size for storage, size in kept.items() if storage not in parameters)


@pytest.mark.parametrize(("mode", "compiled"), [("selective", False), ("selective", True), ("full", False)])
def test_gradients_are_bitwise_the_same(mode: Recompute, compiled: bool) -> None:
    expected, _ = run("none")
    got, _ = run(mode, compiled=compiled)
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        assert torch.equal(gradient, got[name]), name


def test_full_keeps_less() -> None:
    # What `selective` keeps is held by its cache, which these hooks do not see.
    assert run("full")[1] < 0.5 * run("none")[1]


class Counter(TorchDispatchMode):
    """Counts the operations that are carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.__name__] = self.counts.get(func.__name__, 0) + 1
        return func(*args, **(kwargs or {}))


def test_selective_computes_products_once_and_full_twice() -> None:
    products, activations = {}, {}
    for mode in ("none", "selective", "full"):
        model = tiny_model()
        apply_recompute(model.transformer.blocks, mode)  # type: ignore[arg-type]
        engine = LocalEngine(model, CrossEntropy(), OptimizerSection(), "fp32")
        with Counter() as counter:
            engine.backward([rows_batch(ROWS, length=8)])
        products[mode] = counter.counts["mm.default"] + counter.counts["addmm.default"]
        activations[mode] = counter.counts["silu.default"]
    assert products["none"] == products["selective"] < products["full"]
    assert activations["none"] < activations["selective"] == activations["full"]

"""Models with int8 activations on the CPU kernels: as torch's modules compute them."""

from __future__ import annotations

import pytest
import torch
from tests.unit.models.paged_driver import Driver, text
from tests.unit.models.small import MIXTURE, SMALL, small_model
from tests.unit.ops.cpu.conftest import skip_without_kernels
from torch import nn

from telechat.layers.int8 import DynamicInt8Linear, StaticInt8Linear
from telechat.layers.quantized import set_module
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, TeleChatModel
from telechat.models.executors import choose_executor
from telechat.models.native import NativeExecutor
from telechat.models.paged import TorchExecutor
from telechat.ops.cpu.context import shared_context
from telechat.ops.int8 import ActivationRange, DynamicWeight, StaticWeight, quantise_rows
from telechat.ops.paged_choice import REFERENCE

LONG = RopeSettings(base_length=16, training_length=256)
DENSE = SMALL.replace(hidden_size=64, rope=LONG, tie_word_embeddings=False)
EXPERTS = MIXTURE.replace(hidden_size=64, rope=LONG)
LEFT_IN_FLOATS = ("lm_head", "router", "key_value")


@pytest.fixture(autouse=True)
def _kernels() -> None:
    skip_without_kernels()


def int8_model(config: TeleChatConfig, *, is_dynamic: bool) -> TeleChatModel:
    """All layers but some, with ranges that differ: what shares inputs need not share a range."""
    model = small_model(config, attention="reference").requires_grad_(False)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for number, (name, linear) in enumerate(sorted(linears.items())):
        if linear.bias is not None:
            nn.init.normal_(linear.bias, 0.0, 0.2)
        if name.endswith(LEFT_IN_FLOATS):
            continue
        if is_dynamic:
            weight = DynamicWeight(*quantise_rows(linear.weight))
            set_module(model, name, DynamicInt8Linear(weight, linear.bias))
        else:
            inputs = ActivationRange.spanning(-3.0 - number % 3, 4.0)
            static = StaticWeight.from_float(linear.weight, linear.bias, inputs)
            set_module(model, name, StaticInt8Linear(static))
    return model


@pytest.mark.parametrize("config", [DENSE, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_equals_torch(config: TeleChatConfig, is_dynamic: bool) -> None:
    model = int8_model(config, is_dynamic=is_dynamic)
    drivers = [
        Driver(TorchExecutor(model, kernels=REFERENCE)),
        Driver(NativeExecutor(model, context=shared_context(2))),
    ]
    ids, other = text(40, 1), text(20, 2)
    for pieces in ({"a": ids[:30]}, {"b": other[:19], "a": ids[30:31]}, {"a": ids[31:], "b": other[19:]}):
        expected, found = (driver.run(pieces) for driver in drivers)
        for name in pieces:
            # An input at the edge between two integers may fall to either side.
            difference = (found[name] - expected[name]).square().mean().sqrt()
            assert float(difference / expected[name].square().mean().sqrt()) < 0.02


def test_a_row_has_the_same_bits_in_any_company() -> None:
    model = int8_model(DENSE, is_dynamic=False)
    ids, other = text(40, 7), text(30, 8)

    def driver() -> Driver:
        return Driver(NativeExecutor(model, deterministic=True, context=shared_context(2)))

    alone, one_by_one, beside = driver().run({"a": ids})["a"], driver(), driver()
    assert torch.equal(torch.cat([one_by_one.run({"a": [token]})["a"] for token in ids]), alone)
    assert torch.equal(beside.run({"b": other, "a": ids})["a"], alone)


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_chosen_and_given_back(is_dynamic: bool) -> None:
    model = int8_model(DENSE, is_dynamic=is_dynamic)
    layers = [m for m in model.modules() if isinstance(m, StaticInt8Linear | DynamicInt8Linear)]
    expected = Driver(choose_executor(model)).run({"a": text(9, 1)})["a"]
    assert all(layer.weight is not None for layer in layers)
    executor = choose_executor(model, consume=True)
    assert isinstance(executor, NativeExecutor) and "10 w8a8" in executor.describe()
    assert all(layer.weight is None for layer in layers)
    assert torch.equal(Driver(executor).run({"a": text(9, 1)})["a"], expected)

"""Rows of several adapters in one batch: each gets what a model with its adapter merged in would give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.unit.checkpoint.adapters import ALL_LAYERS, random_adapter
from tests.unit.models.paged_driver import Driver, text
from tests.unit.models.plain_kernels import PretendRecorder, plain_kernels
from tests.unit.models.small import KINDS, SMALL, small_model
from tests.unit.ops.cpu.conftest import skip_without_kernels
from torch import Tensor

from telechat.checkpoint import Adapter, AdapterConfig, merge_adapter
from telechat.layers.quantized import QuantizedLinear
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, TeleChatModel
from telechat.models.fused import FusedExecutor
from telechat.models.native import NativeExecutor
from telechat.models.paged import Executor, TorchExecutor
from telechat.models.quantized import quantize_layers
from telechat.ops.cpu.context import available_levels, shared_context
from telechat.ops.paged_choice import REFERENCE
from telechat.ops.quantized import WeightScheme

LONG = RopeSettings(base_length=16, training_length=256)
BASE = SMALL.replace(hidden_size=64, rope=LONG)
HEADED = AdapterConfig(r=3, lora_alpha=4, target_modules=(*ALL_LAYERS, "lm_head"))
ATTENTION = AdapterConfig(r=20, lora_alpha=10, target_modules=("query", "key_value", "dense"))


def adapters_of(config: TeleChatConfig) -> dict[int, Adapter]:
    """Two adapters that differ in rank, scale and layers."""
    first = ATTENTION if config.moe else HEADED
    return {
        4: random_adapter(config, seed=1, settings=first, size=0.2),
        7: random_adapter(config, seed=2, settings=ATTENTION, size=0.1),
    }


def native(model: TeleChatModel) -> Executor:
    skip_without_kernels()
    return NativeExecutor(model, context=shared_context(2))


def native_exact(model: TeleChatModel) -> Executor:
    skip_without_kernels()
    return NativeExecutor(model, context=shared_context(2), deterministic=True)


EXECUTORS: dict[str, Callable[[TeleChatModel], Executor]] = {
    "native": native,
    "native deterministic": native_exact,
    "torch": lambda model: TorchExecutor(model, kernels=REFERENCE),
    "torch deterministic": lambda model: TorchExecutor(model, kernels=REFERENCE, deterministic=True),
    "fused": lambda model: FusedExecutor(model, plain_kernels(PretendRecorder()), paged=REFERENCE),
}


class Adapted(Driver):
    """A driver whose texts have adapters by their names."""

    def __init__(self, executor: Executor, numbers: dict[str, int | None]) -> None:
        super().__init__(executor)
        self.numbers = numbers

    def run(self, pieces: dict[str, list[int]], **options: int) -> dict[str, Tensor]:  # type: ignore[override]
        batch = self.batch(pieces, rope_length=256)
        rows = batch.sequences.query_starts.tolist()[1:]
        runs = [(row, self.numbers[name]) for row, name in zip(rows, pieces, strict=True)]
        if any(number is not None for _, number in runs):
            batch = replace(batch, adapter_runs=runs)
        logits = self.executor.forward(batch)
        parts = logits.split([len(piece) for piece in pieces.values()])
        return dict(zip(pieces, parts, strict=True))


STEPS: tuple[dict[str, list[int]], ...] = (
    {"a": text(19, 1), "b": text(6, 2), "none": text(5, 3)},
    {"none": text(1, 4), "a": text(1, 5), "b": text(21, 6)},
    {"a": text(1, 7), "b": text(1, 8), "none": text(1, 9)},
    {"none": text(2, 10)},
)
NUMBERS: dict[str, int | None] = {"a": 4, "b": 7, "none": None}


def merged(model: TeleChatModel, adapter: Adapter | None) -> TeleChatModel:
    model = copy.deepcopy(model)
    if adapter is not None:
        merge_adapter(model, adapter)
    return model


def expected_logits(model: TeleChatModel, adapters: dict[int, Adapter]) -> list[dict[str, Tensor]]:
    """Each text alone, through the model with its adapter merged into it."""
    steps: list[dict[str, Tensor]] = [{} for _ in STEPS]
    for name, number in NUMBERS.items():
        whole = merged(model, None if number is None else adapters[number])
        driver = Adapted(TorchExecutor(whole, kernels=REFERENCE), {name: None})
        for found, step in zip(steps, STEPS, strict=True):
            if name in step:
                found |= driver.run({name: step[name]})
    return steps


@pytest.mark.parametrize("kind", ["grouped", "residual after norm", "mixture"])
@pytest.mark.parametrize("form", EXECUTORS)
def test_each_row_has_its_adapter(form: str, kind: str) -> None:
    if kind == "mixture" and form == "fused":
        pytest.skip("there is no fused mixture")
    model = small_model(KINDS[kind].replace(hidden_size=64, rope=LONG), attention="reference")
    adapters = adapters_of(model.config)
    expected = expected_logits(model, adapters)
    executor = EXECUTORS[form](model)
    for number, adapter in adapters.items():
        executor.load_adapter(number, adapter.scaled_layers())
    driver = Adapted(executor, NUMBERS)
    for step, wanted in zip(STEPS, expected, strict=True):
        found = driver.run(step)
        for name in step:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", EXECUTORS)
def test_adapters_leave_other_batches_alone(form: str) -> None:
    """Not a bit of a base row changes while adapters are loaded, nor after they are gone."""
    model = small_model(BASE, attention="reference")
    before = Adapted(EXECUTORS[form](copy.deepcopy(model)), {"none": None}).run({"none": text(9, 1)})
    executor = EXECUTORS[form](model)
    adapters = adapters_of(BASE)
    for number, adapter in adapters.items():
        executor.load_adapter(number, adapter.scaled_layers())
    assert torch.equal(Adapted(executor, {"none": None}).run({"none": text(9, 1)})["none"], before["none"])
    changed = Adapted(executor, {"a": 4}).run({"a": text(9, 1)})["a"]
    assert (changed - before["none"]).abs().max() > 0.1
    for number in adapters:
        executor.unload_adapter(number)
    assert torch.equal(Adapted(executor, {"none": None}).run({"none": text(9, 1)})["none"], before["none"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["native", "torch"])
def test_on_quantised_weights(form: str, bits: int) -> None:
    """Equal to the adapter merged into the weights that the integers stand for."""
    model = small_model(BASE.replace(ffn_hidden_size=64), attention="reference")
    adapters = adapters_of(model.config)
    quantize_layers(model, WeightScheme(bits, 32))
    meant = small_model(model.config, attention="reference")
    for name, parameter in meant.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        is_rounded = isinstance(module, QuantizedLinear) and leaf == "weight"
        parameter.data.copy_(module.dequantise() if is_rounded else getattr(module, leaf))
    expected = expected_logits(meant, adapters)
    for module in model.modules():
        if form == "torch" and isinstance(module, QuantizedLinear):
            module.bind("dequantise")
    executor = EXECUTORS[form](model)
    for number, adapter in adapters.items():
        executor.load_adapter(number, adapter.scaled_layers())
    driver = Adapted(executor, NUMBERS)
    # The kernels' integer products round activations to 8 bits, which alone moves one of these rows by 0.13.
    tolerance = 0.25 if form == "native" else 1e-4
    for step, wanted in zip(STEPS, expected, strict=True):
        found = driver.run(step)
        for name in step:
            scale = wanted[name].abs().max()
            assert (found[name] - wanted[name]).abs().max() / scale < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_level_of_the_kernels(dtype: torch.dtype) -> None:
    skip_without_kernels()
    model = small_model(BASE, attention="reference").to(dtype)
    adapters = adapters_of(BASE)
    expected = expected_logits(model.float(), adapters)
    model = model.to(dtype)
    for isa in available_levels():
        executor = NativeExecutor(model, context=shared_context(2, isa))
        for number, adapter in adapters.items():
            executor.load_adapter(number, adapter.scaled_layers())
        driver = Adapted(executor, NUMBERS)
        tolerance = 1e-4 if dtype == torch.float32 else 0.08
        for step, wanted in zip(STEPS, expected, strict=True):
            found = driver.run(step)
            for name in step:
                scale = wanted[name].abs().max()
                assert (found[name] - wanted[name]).abs().max() / scale < tolerance, isa


def test_a_row_does_not_depend_on_the_others() -> None:
    """To the last bit, where that was asked for: alone, and beside rows of other adapters."""
    model = small_model(BASE, attention="reference")
    executor = native_exact(model)
    for number, adapter in adapters_of(BASE).items():
        executor.load_adapter(number, adapter.scaled_layers())
    together = Adapted(executor, NUMBERS)
    found = [together.run(step) for step in STEPS]
    for name in NUMBERS:
        alone = Adapted(executor, NUMBERS)
        for step, beside in zip(STEPS, found, strict=True):
            if name in step:
                assert torch.equal(alone.run({name: step[name]})[name], beside[name])


def test_matrices_that_do_not_fit_are_a_bug_of_the_caller() -> None:
    executor = native(small_model(BASE, attention="reference"))
    name = "transformer.h.0.self_attention.query"
    with pytest.raises(AssertionError, match="for a weight 64 x 64"):
        executor.load_adapter(1, {name: (torch.zeros(2, 63), torch.zeros(64, 2))})
    with pytest.raises(AssertionError, match="no product"):
        executor.load_adapter(1, {name.replace("0", "9"): (torch.zeros(2, 64), torch.zeros(64, 2))})

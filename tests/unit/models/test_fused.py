"""The fused executor computes what the model's torch modules compute, recorded or not."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.unit.models.paged_driver import Driver, text
from tests.unit.models.plain_kernels import PretendRecorder, plain_kernels
from tests.unit.models.small import KINDS, MIXTURE, SMALL, small_model

from telechat.layers.quantized import QuantizedLinear, set_module
from telechat.models.decoder import TeleChatModel
from telechat.models.fused import FusedExecutor, fused_obstacle
from telechat.models.paged import TorchExecutor
from telechat.models.recordings import padded_length, padded_size
from telechat.ops.fused import FusedKernels
from telechat.ops.paged import INT4
from telechat.ops.paged_choice import REFERENCE, PagedKernels
from telechat.ops.quantized import WeightScheme

DENSE = {name: config for name, config in KINDS.items() if config.moe is None}


def triton(recorder: PretendRecorder | None) -> tuple[FusedKernels, PagedKernels]:
    pytest.importorskip("triton", reason="triton is not installed (the dev extra has it on Linux)")
    from telechat.ops.cuda import choice
    from telechat.ops.cuda.tuning import Products

    kernels = choice.triton_kernels(Products(None), torch.float32, recorder and (lambda: recorder))
    return kernels, PagedKernels("triton", choice.rope_and_store, choice.paged_attention, "in a test")


def drivers(
    model: TeleChatModel, recorder: PretendRecorder | None = None, kv_dtype: torch.dtype | None = None
) -> tuple[Driver, Driver]:
    """The executor in question and the reference, with the same weights."""
    kernels, paged = triton(recorder)
    # A copy: an executor chooses the products of integer weights once, and the reference's are to be exact.
    exact = copy.deepcopy(model)
    for module in exact.modules():
        if isinstance(module, QuantizedLinear):
            module.bind("dequantise")
    reference = TorchExecutor(exact, kernels=REFERENCE, kv_dtype=kv_dtype)
    # On the GPU where there is one; elsewhere Triton's interpreter runs the kernels.
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Driver(FusedExecutor(model.to(place), kernels, paged=paged, kv_dtype=kv_dtype)), Driver(reference)


def check(fused: Driver, reference: Driver, *steps: dict[str, list[int]]) -> None:
    for step in steps:
        actual, expected = fused.run(step), reference.run(step)
        for name in step:
            torch.testing.assert_close(actual[name].cpu(), expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", DENSE)
def test_equals_torch_modules(kind: str) -> None:
    fused, reference = drivers(small_model(DENSE[kind]))
    check(
        fused,
        reference,
        {"a": text(9, 1), "b": text(3, 2)},
        {"a": text(1, 3), "b": text(5, 4)},
        {"a": text(1, 5), "b": text(1, 6)},
    )


def test_recorded_steps_equal_torch_modules() -> None:
    recorder = PretendRecorder()
    fused, reference = drivers(small_model(), recorder)
    check(fused, reference, {"a": text(9, 1), "b": text(3, 2), "c": text(4, 3)})
    assert recorder.recorded == 0, "a prompt was recorded"
    check(fused, reference, *({name: text(1, seed) for name in "abc"} for seed in (4, 5)))
    assert (recorder.recorded, recorder.replayed) == (1, 2)
    # Fewer sequences in a size that is there already, another order, another size.
    check(fused, reference, {"c": text(1, 7), "a": text(1, 8), "b": text(1, 9)}, {"b": text(1, 10)})
    assert (recorder.recorded, recorder.replayed) == (2, 4)


def test_wanted_rows_of_a_recorded_step() -> None:
    fused, reference = drivers(small_model(), PretendRecorder())
    check(fused, reference, {"a": text(3, 1), "b": text(3, 2)})
    pieces = {"a": text(1, 3), "b": text(1, 4)}
    batches = [driver.batch(pieces) for driver in (fused, reference)]
    wanted = torch.tensor([1, 0, 1])
    results = []
    for driver, batch in zip((fused, reference), batches, strict=True):
        object.__setattr__(batch, "logit_rows_L", wanted)
        results.append(driver.executor.forward(batch).cpu())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_a_result_outlives_the_next_step() -> None:
    fused, _ = drivers(small_model(), PretendRecorder())
    fused.run({"a": text(3, 1)})
    first = fused.run({"a": text(1, 2)})["a"]
    kept = first.clone()
    fused.run({"a": text(1, 3)})
    assert torch.equal(first, kept)


def test_sequences_too_long_to_record() -> None:
    recorder = PretendRecorder()
    fused, reference = drivers(small_model(), recorder)
    check(fused, reference, {"a": text(SMALL.training_seqlen, 1)}, {"a": text(1, 2)})
    assert recorder.recorded == 0


def test_hidden_states() -> None:
    fused, reference = drivers(small_model())
    pieces = {"a": text(5, 1), "b": text(2, 2)}
    states = [driver.executor.hidden_states(driver.batch(pieces)).cpu() for driver in (fused, reference)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kv_dtype", [None, torch.int8, INT4], ids=str)
def test_integer_weights(kv_dtype: torch.dtype | None) -> None:
    config = SMALL.replace(hidden_size=64, ffn_hidden_size=96)
    model = small_model(config)
    for name, module in list(model.named_modules()):
        # Of queries, keys and values the queries only: weights of two kinds in one projection.
        if isinstance(module, torch.nn.Linear) and not name.endswith(("lm_head", "key_value")):
            set_module(model, name, QuantizedLinear.from_linear(module, WeightScheme(4, 32)))
    fused, reference = drivers(model, kv_dtype=kv_dtype)
    check(fused, reference, {"a": text(9, 1), "b": text(1, 2)}, {"a": text(1, 3)})


def test_weights_are_held_once() -> None:
    model = small_model()
    expected = model(torch.arange(6)[None])
    FusedExecutor(model, plain_kernels())
    block = model.transformer.blocks[0].self_attention
    assert block.query.weight.untyped_storage().data_ptr() == (
        block.key_value.weight.untyped_storage().data_ptr()
    )
    assert torch.equal(model(torch.arange(6)[None]), expected), "the modules have other weights now"


def test_obstacles() -> None:
    assert fused_obstacle(small_model()) is None
    assert "mixture" in str(fused_obstacle(small_model(MIXTURE)))
    model = small_model()
    model.transformer.ln_f.register_forward_hook(lambda *_: None)
    assert "has hooks" in str(fused_obstacle(model))


def test_padded_sizes() -> None:
    sizes = [padded_size(count) for count in (1, 2, 3, 5, 9, 17, 33, 256, 257)]
    assert sizes == [1, 2, 4, 8, 16, 32, 48, 256, None]
    assert [padded_length(longest, 8192) for longest in (1, 512, 513, 5000)] == [512, 512, 1024, 8192]
    assert padded_length(3000, 3008) == 3008

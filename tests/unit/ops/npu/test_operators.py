"""Operators of torch_npu are called as it documents them, and compute what the references compute."""

from __future__ import annotations

import sys

import pytest
import torch
from tests.unit.models.paged_driver import Driver, text
from tests.unit.models.small import SMALL, small_model
from tests.unit.ops.cuda.test_paged import MIXED, random_cache
from tests.unit.ops.cuda.tolerances import assert_near
from tests.unit.ops.npu.stand_in import StandIn

from telechat.models.fused import FusedExecutor
from telechat.models.paged import TorchExecutor
from telechat.ops.cpu.norm import rms_norm_reference
from telechat.ops.cpu.swiglu import swiglu_reference
from telechat.ops.fused import FusedKernels, choose_fused_kernels
from telechat.ops.npu import choice, operators
from telechat.ops.paged import (
    PagedCache,
    Sequences,
    paged_attention_reference,
    rope_and_store_reference,
)
from telechat.ops.paged_choice import REFERENCE, PagedKernels
from telechat.ops.quantized import WeightScheme, round_to_nearest

CPU = torch.device("cpu")


class Ascend:
    """As far as the choice looks at a device. torch knows the real one after importing torch_npu only."""

    type = "npu"


NPU = Ascend()


@pytest.fixture
def torch_npu(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    torch.manual_seed(0)
    package = StandIn()
    monkeypatch.setitem(sys.modules, "torch_npu", package)
    return package


def test_norm_and_swiglu(torch_npu: StandIn) -> None:
    x, add = torch.randn(2, 3, 64).half().unbind()
    weight = torch.randn(64).half()
    for addend in (None, add):
        actual_x, expected_x = x.clone(), x.clone()
        actual = operators.rms_norm(actual_x, weight, 1e-5, add=addend)
        assert_near(actual, rms_norm_reference(expected_x, weight, 1e-5, add=addend))
        assert torch.equal(actual_x, expected_x)
    gate, up = torch.randn(3, 80).half().chunk(2, dim=1)
    assert_near(operators.swiglu(gate, up), swiglu_reference(gate, up))
    assert torch_npu.names() == ["npu_rms_norm", "npu_add_rms_norm", "npu_swiglu"]
    assert [given.get("epsilon") for _, given in torch_npu.calls] == [1e-5, 1e-5, None]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rope_and_store(torch_npu: StandIn, dtype: torch.dtype) -> None:
    wide = torch.randn(3, 8 * 32).to(dtype)
    cos, sin = torch.rand(2, 3, 32).unbind()
    slots = torch.tensor([0, 17, 30])
    results = []
    for function in (rope_and_store_reference, operators.rope_and_store):
        copy = wide.clone()
        cache = PagedCache.allocate(2, 2, 16, 32, dtype=dtype)
        q = copy[:, : 4 * 32].view(3, 4, 32)
        function(q, copy[:, 4 * 32 :].view(3, 2, 2, 32), cos, sin, slots, cache)
        results.append((q, cache.keys, cache.values))
    for expected, actual in zip(*results, strict=True):
        assert_near(actual, expected)
    assert torch_npu.calls == [("npu_rotary_mul", {"dtype": torch.float32})] * 2


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(1, 5), (1, 40)], [{"paged": True, "sparse_mode": 0}]),
        (
            [(4, 4), (1, 20), (3, 40)],
            [{"paged": False, "sparse_mode": mode} for mode in (3, 0, 3)],
        ),
        (MIXED, None),
    ],
    ids=["decode", "chunks", "mixed"],
)
def test_attention(
    torch_npu: StandIn, steps: list[tuple[int, int]], expected: list[dict[str, object]] | None
) -> None:
    cache, tables = random_cache(
        [length for _, length in steps],
        block_size=16,
        num_kv_heads=2,
        head_dim=32,
        dtype=torch.float16,
        device=CPU,
    )
    sequences = Sequences.of([new for new, _ in steps], [length for _, length in steps], tables)
    q = torch.randn(sum(new for new, _ in steps), 4, 32).half()
    actual = operators.paged_attention(q, cache, sequences)
    assert_near(actual, paged_attention_reference(q, cache, sequences))
    if expected is not None:
        assert [given for _, given in torch_npu.calls] == expected


def test_integer_weights(torch_npu: StandIn) -> None:
    del torch_npu
    weight = round_to_nearest(torch.randn(8, 64), WeightScheme(4, 32))
    x, bias = torch.randn(3, 64), torch.randn(8)
    expected = x @ weight.dequantise().T + bias
    torch.testing.assert_close(operators.bind_quantized(weight, bias)(x), expected)
    actual = operators.bind_quantized(weight, bias, gated=True)(x)
    torch.testing.assert_close(actual, swiglu_reference(*expected.chunk(2, dim=1)))
    actual = operators.bind_linear(weight.dequantise(), bias, gated=True)(x)
    torch.testing.assert_close(actual, swiglu_reference(*expected.chunk(2, dim=1)))


def test_a_whole_model(torch_npu: StandIn) -> None:
    """Prompts and decoding through the fused executor, in the precision the operators have."""
    model = small_model(SMALL).half()
    chosen = choose_fused_kernels(NPU, torch.float16, SMALL.hidden_size)  # type: ignore[arg-type]
    assert isinstance(chosen, FusedKernels) and chosen.name == "torch_npu"
    paged = PagedKernels("torch_npu", *choice.paged_kernels(), "in a test")
    fused = Driver(FusedExecutor(model, chosen, paged=paged))
    reference = Driver(TorchExecutor(model, kernels=REFERENCE))
    for step in ({"a": text(9, 1), "b": text(3, 2)}, {"a": text(1, 3), "b": text(1, 4)}):
        actual, expected = fused.run(step), reference.run(step)
        for name in step:
            assert_near(actual[name], expected[name], dtype=torch.bfloat16)
    used = set(torch_npu.names())
    assert used == {
        "npu_rms_norm",
        "npu_add_rms_norm",
        "npu_swiglu",
        "npu_rotary_mul",
        "npu_fused_infer_attention_score",
    }
    assert "steps not recorded" in fused.executor.describe()


def obstacle(
    dtype: torch.dtype = torch.float16,
    cache_dtype: torch.dtype = torch.float16,
    head_dim: int = 128,
    block_size: int = 128,
) -> str:
    return str(choice.paged_obstacle(NPU, dtype, cache_dtype, head_dim, block_size))  # type: ignore[arg-type]


def test_obstacles_are_named(torch_npu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacle() == "None"
    assert "on cpu" in str(choice.fused_kernels(CPU, torch.float16, 64))
    assert "not float32" in obstacle(dtype=torch.float32)
    assert "unlike the queries" in obstacle(cache_dtype=torch.int8)
    assert "head dimension 40" in obstacle(head_dim=40)
    assert "block size 1024" in obstacle(block_size=1024)
    monkeypatch.delattr(StandIn, "npu_rotary_mul")
    assert "no npu_rotary_mul" in obstacle()
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    assert "does not import" in obstacle()
    del torch_npu


def test_neither_device() -> None:
    reasons = choose_fused_kernels(CPU, torch.float32, 64)
    assert isinstance(reasons, str) and "CUDA" in reasons and "Ascend" in reasons

"""Products with packed weights equal their reference, at every level, and rows do not disturb each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from telechat.ops.cpu.context import Context, available_levels, shared_context
from telechat.ops.cpu.matmul import matmul, matmul_reference, obstacle
from telechat.ops.cpu.weights import FORMATS, PackedWeight, WeightFormat

# Rows that meet every special case: below, at and past the tile height, and the many-row forms.
ROWS = [1, 2, 3, 4, 7, 8, 13, 16, 17, 31, 32, 50, 81]
TWO_BANDS = 533
# The last has more panels than are multiplied side by side, and an odd number of them.
SHAPES = [(16, 32), (40, 100), (96, 640), (1096, 192)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.float() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("weight_format", "group"),
    [("int4", 32), ("int4", 64), ("int4", 128), ("int8", 32), ("int8", 128), ("bfloat16", 0), ("float32", 0)],
)
def test_equals_the_reference(
    context: Context, weight_format: WeightFormat, group: int, shape: tuple[int, int]
) -> None:
    N, K = shape
    weight = PackedWeight.pack(context, random(N, K), weight_format, group)
    bias = random(N, seed=1)
    for M in ROWS:
        x = random(M, K, seed=M)
        expected = matmul_reference(x, weight, bias)
        # Only the order of fp32 additions differs.
        assert relative_error(matmul(context, x, weight, bias, num_decoding=len(x)), expected) < 2e-5
        # Many rows may take bf16 for both factors: two roundings of 2^-9 each, averaged over K terms.
        exact = x @ weight.unpack().T + bias
        limit = 2e-2 if weight_format in ("int4", "int8", "bfloat16") else 2e-5
        assert relative_error(matmul(context, x, weight, bias), exact) < limit


@pytest.mark.parametrize("weight_format", FORMATS)
def test_types_of_input_and_output(context: Context, weight_format: WeightFormat) -> None:
    weight = PackedWeight.pack(context, random(40, 96), weight_format)
    for M in (1, 5, 64):
        x = random(M, 96, seed=2, dtype=torch.bfloat16)
        expected = matmul_reference(x, weight)
        out = matmul(context, x, weight, num_decoding=len(x))
        assert out.dtype == torch.bfloat16
        assert relative_error(out, expected) < 2**-8
        out = matmul(context, x, weight, out_dtype=torch.float32, num_decoding=len(x))
        assert relative_error(out, expected) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adds_to_what_is_there(context: Context, dtype: torch.dtype) -> None:
    weight, bias = PackedWeight.pack(context, random(40, 96), "int8"), random(40, seed=3)
    for M in (1, 20):
        x, before = random(M, 96, seed=4), random(M, 40, seed=5, dtype=dtype)
        out = before.clone()
        assert matmul(context, x, weight, bias, add_to=out) is out
        assert relative_error(out, before.float() + matmul_reference(x, weight, bias)) < (
            2e-5 if dtype == torch.float32 else 2**-7
        )


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_row_does_not_depend_on_the_others(context: Context, weight_format: WeightFormat) -> None:
    weight, x = PackedWeight.pack(context, random(48, 320), weight_format), random(TWO_BANDS, 320, seed=6)
    alone = torch.cat([matmul(context, row[None], weight, num_decoding=len(x)) for row in x])
    for M in (*ROWS, TWO_BANDS):
        assert torch.equal(matmul(context, x[:M].contiguous(), weight, num_decoding=len(x)), alone[:M])


@pytest.mark.parametrize("weight_format", ["int4", "int8", "float32"])
def test_vector_levels_agree_to_the_bit(any_context: Context, weight_format: WeightFormat) -> None:
    # The portable level may have no fused multiply-add and differs in the last bits.
    levels = [level for level in available_levels() if level != "portable"]
    weight, x = PackedWeight.pack(any_context, random(48, 320), weight_format), random(19, 320, seed=7)
    results = [matmul(shared_context(2, level), x, weight, num_decoding=len(x)) for level in levels]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("weight_format", ["int4", "int8"])
def test_extreme_integers_do_not_overflow(context: Context, weight_format: WeightFormat) -> None:
    low, high = (-8, 7) if weight_format == "int4" else (-127, 127)
    for value in (low, high):
        q = torch.full((16, 256), value, dtype=torch.int8)
        weight = PackedWeight.pack_quantised(context, q, torch.ones(16, 8).half(), weight_format, 32)
        for sign in (1.0, -1.0):
            x = torch.full((4, 256), sign)
            assert torch.allclose(
                matmul(context, x, weight), torch.full((4, 16), sign * value * 256), rtol=1e-5
            )


def test_zeros_and_no_rows(context: Context) -> None:
    for weight_format in FORMATS:
        weight = PackedWeight.pack(context, random(24, 64), weight_format)
        assert not matmul(context, torch.zeros(3, 64), weight).any()
        assert matmul(context, torch.zeros(0, 64), weight).shape == (0, 24)


def test_obstacles(any_context: Context) -> None:
    weight = PackedWeight.pack(any_context, random(24, 64), "int8")
    assert obstacle(random(2, 64), weight, None) is None
    assert "do not fit 64" in str(obstacle(random(2, 65), weight, None))
    assert "float64" in str(obstacle(random(2, 64).double(), weight, None))
    assert "not contiguous" in str(obstacle(random(64, 2).T, weight, None))
    assert "bias" in str(obstacle(random(2, 64), weight, random(23)))

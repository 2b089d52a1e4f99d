"""Every Triton kernel against its reference, compiled for the GPU, at the sizes of published models.

The same kernels at small sizes, with edges and obstacles: tests/unit/ops/cuda, which runs on the GPU as well
where there is one.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.unit.ops.cuda.test_matmul import random_integers
from tests.unit.ops.cuda.test_paged import check_attention, check_int4
from tests.unit.ops.cuda.tolerances import assert_near
from torch import Tensor

from telechat.ops.cpu.norm import rms_norm_reference
from telechat.ops.cpu.swiglu import swiglu_reference
from telechat.ops.cuda import matmul, rows
from telechat.ops.cuda.choice import paged_obstacle
from telechat.ops.cuda.launch import triton_obstacle
from telechat.ops.cuda.paged import rope_and_store
from telechat.ops.cuda.tuning import Products, device_time
from telechat.ops.paged import INT4, PagedCache, rope_and_store_reference
from telechat.ops.quantized import WeightScheme, round_to_nearest

pytestmark = pytest.mark.device

HALF = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALF]
# (inputs, outputs) of the 7B's and the 12B's products, outputs cut to some thousands.
SIZES = [(4096, 4096), (12288, 4096), (4096, 6144), (5120, 5120)]
# (query heads, key/value heads, head dimension) of the 7B, the 12B, the 115B and the demo model.
HEADS = [(32, 32, 128), (32, 32, 160), (64, 8, 128), (4, 2, 64)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_triton_runs_here(device: torch.device) -> None:
    assert triton_obstacle(device) is None
    assert paged_obstacle(device, torch.bfloat16, torch.int8, 160) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [256, 4096, 5120, 8192])
def test_rows(device: torch.device, width: int, dtype: torch.dtype) -> None:
    x, add = (torch.randn(65, width, device=device).mul(3).to(dtype) for _ in range(2))
    weight = torch.randn(width, device=device).to(dtype)
    expected_x = x.clone()
    expected = rms_norm_reference(expected_x, weight, 1e-5, add=add)
    assert_near(rows.rms_norm(x, weight, 1e-5, add=add), expected)
    assert_near(x, expected_x)
    gate, up = torch.randn(65, 2 * width, device=device).to(dtype).chunk(2, dim=1)
    assert_near(rows.swiglu(gate, up), swiglu_reference(gate, up))


def exact(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, *, gated: bool) -> Tensor:
    out = (F.linear(x.double(), weight.double()) + bias.double()).to(dtype)
    return swiglu_reference(*out.chunk(2, dim=1)) if gated else out


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_row_with_every_tile(
    device: torch.device, size: tuple[int, int], dtype: torch.dtype, *, gated: bool
) -> None:
    k, n = size
    x, weight = torch.randn(1, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
    bias = torch.randn(n, device=device).to(dtype)
    expected = exact(x, weight, bias, dtype, gated=gated)
    for tile in matmul.FLOAT_TILES:
        assert_near(matmul.linear(x, weight, bias, gated=gated, tile=tile), expected)


@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_integer_weights(
    device: torch.device, size: tuple[int, int], dtype: torch.dtype, bits: int, group_size: int
) -> None:
    k, n = size
    packed, scales, weights = random_integers(n, k, bits, group_size, device)
    bias = torch.randn(n, device=device).to(dtype)
    for num_rows in (1, 2, 7, 16, 33, 64, 200, matmul.MANY_ROWS):
        x = torch.randn(num_rows, k, device=device).to(dtype)
        for gated in (False, True):
            expected = exact(x, weights, bias, dtype, gated=gated)
            for tile in matmul.tiles_for(bits) if num_rows == 1 else (None,):
                actual = matmul.quantized_linear(
                    x, packed, scales, bits=bits, group_size=group_size, bias=bias, gated=gated, tile=tile
                )
                assert_near(actual, expected)


def test_tiles_are_tried(device: torch.device) -> None:
    products = Products(device_time(device))
    weight = torch.randn(4096, 4096, device=device).bfloat16()
    x = torch.randn(1, 4096, device=device).bfloat16()
    assert_near(products.bind_linear(weight, None)(x), F.linear(x.float(), weight.float()).bfloat16())
    stored = round_to_nearest(weight, WeightScheme(4, 32))
    product = products.bind_quantized(stored, None, dtype=torch.bfloat16)
    assert_near(product(x), F.linear(x.float(), stored.dequantise()).bfloat16())
    assert len(products._chosen) == 2


STEPS = {
    "decode": [(1, 700), (1, 64), (1, 1), (1, 2049)],
    "one long": [(1, 6000)],
    "drafts": [(5, 300), (4, 4)],
    "prompts": [(513, 513), (100, 900), (1, 40), (300, 301)],
}


@pytest.mark.parametrize("block_size", [16, 64, 96, 128])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("steps", STEPS)
def test_attention(device: torch.device, steps: str, heads: tuple[int, int, int], block_size: int) -> None:
    check_attention(device, STEPS[steps], heads, block_size=block_size, dtype=torch.bfloat16)


@pytest.mark.parametrize("cache_dtype", [torch.float16, torch.int8, INT4], ids=str)
@pytest.mark.parametrize("steps", STEPS)
def test_attention_in_other_precisions(device: torch.device, steps: str, cache_dtype: torch.dtype) -> None:
    check_attention(
        device, STEPS[steps], (32, 8, 128), block_size=64, dtype=torch.float16, cache_dtype=cache_dtype
    )
    check_attention(device, STEPS[steps], (8, 8, 64), dtype=torch.float32)


@pytest.mark.parametrize("slot_dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("cache_dtype", [*HALF, torch.int8, INT4], ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_rope_and_store(
    device: torch.device, heads: tuple[int, int, int], cache_dtype: torch.dtype, slot_dtype: torch.dtype
) -> None:
    H, K, d = heads
    T = 130
    dtype = cache_dtype if cache_dtype.is_floating_point else torch.bfloat16
    wide = torch.randn(T, (H + 2 * K) * d, device=device).to(dtype)
    cos, sin = torch.rand(2, T, d, device=device).unbind()
    slots = torch.randperm(64 * 16, device=device)[:T].to(slot_dtype)
    results = []
    for function in (rope_and_store_reference, rope_and_store):
        copy = wide.clone()
        cache = PagedCache.allocate(64, K, 16, d, dtype=cache_dtype, device=device)
        q = copy[:, : H * d].view(T, H, d)
        function(q, copy[:, H * d :].view(T, K, 2, d), cos, sin, slots, cache)
        results.append((q, cache))
    (expected_q, expected), (actual_q, actual) = results
    assert_near(actual_q, expected_q)
    if cache_dtype == INT4:
        check_int4(actual.keys, actual.key_scales, expected.keys, expected.key_scales)
        check_int4(actual.values, actual.value_scales, expected.values, expected.value_scales)
        return
    for found, wanted in ((actual.keys, expected.keys), (actual.values, expected.values)):
        if cache_dtype == torch.int8:
            assert int((found.int() - wanted.int()).abs().max()) <= 1
        else:
            assert_near(found, wanted)


def test_a_cache_of_more_than_two_billion_elements(device: torch.device) -> None:
    """Offsets into it do not fit 32 bits."""
    if torch.cuda.mem_get_info(device)[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free memory on the GPU")
    K, d, block_size = 32, 128, 64
    num_blocks = 2**31 // (K * block_size * d) + 2
    cache = PagedCache.allocate(num_blocks, K, block_size, d, dtype=torch.bfloat16, device=device)
    slot = (num_blocks - 1) * block_size + 5
    kv = torch.randn(1, K, 2, d, device=device).bfloat16()
    q = torch.randn(1, K, d, device=device).bfloat16()
    ones, zeros = torch.ones(1, d, device=device), torch.zeros(1, d, device=device)
    rope_and_store(q, kv, ones, zeros, torch.tensor([slot], dtype=torch.int32, device=device), cache)
    assert torch.equal(cache.keys[-1, :, 5], kv[0, :, 0]) and torch.equal(cache.values[-1, :, 5], kv[0, :, 1])

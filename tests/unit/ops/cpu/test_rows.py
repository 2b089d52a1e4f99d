"""Norm, SwiGLU, and rotary embedding with cache write equal their references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from telechat.layers.norm import RMSNorm
from telechat.ops.cpu.cache import rope_and_store, rope_obstacle
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.norm import obstacle as norm_obstacle
from telechat.ops.cpu.norm import rms_norm, rms_norm_reference
from telechat.ops.cpu.swiglu import obstacle as swiglu_obstacle
from telechat.ops.cpu.swiglu import swiglu, swiglu_reference
from telechat.ops.paged import INT4, PagedCache, dequantise_vectors, rope_and_store_reference, stored_forms

DTYPES = [torch.float32, torch.bfloat16]


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """fp32: a few units in the last place. bf16: one, where the fp32 values lie on either side of a tie.

    `dtype` is that of the least exact step on the way, the result's own by default.
    """
    tolerance = 4e-6 if (dtype or expected.dtype) == torch.float32 else 2**-7
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance / 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (3, 40), (2, 5, 96), (21, 7), (1, 1536)], ids=str)
def test_norm(context: Context, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = (torch.randn(shape) * 3).to(dtype), torch.randn(shape[-1]).to(dtype)
    close(rms_norm(context, x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5))
    add = torch.randn(shape).to(dtype)
    expected_x, actual_x = x.clone(), x.clone()
    expected = rms_norm_reference(expected_x, weight, 1e-5, add=add)
    close(rms_norm(context, actual_x, weight, 1e-5, add=add), expected)
    assert torch.equal(actual_x, expected_x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_is_the_layers(any_context: Context, dtype: torch.dtype) -> None:
    layer = RMSNorm(64, 1e-5).to(dtype)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(5, 64).to(dtype)
    assert torch.equal(rms_norm_reference(x, layer.weight.detach(), 1e-5), layer(x).detach())
    zeros = torch.zeros(2, 64, dtype=dtype)
    assert not rms_norm(any_context, zeros, layer.weight.detach(), 1e-8).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 15, 64, 9001])
def test_swiglu(context: Context, count: int, dtype: torch.dtype) -> None:
    gate, up = (torch.randn(count) * 8).to(dtype), torch.randn(count).to(dtype)
    close(swiglu(context, gate, up), swiglu_reference(gate, up))


def test_swiglu_of_large_values(context: Context) -> None:
    gate = torch.tensor([-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30])
    out = swiglu(context, gate, torch.ones(7))
    torch.testing.assert_close(out, swiglu_reference(gate, torch.ones(7)), rtol=1e-5, atol=1e-5)


def empty_cache(num_kv_heads: int, head_dim: int, dtype: torch.dtype, *, by_token: bool) -> PagedCache:
    """Three blocks of 32; with `by_token` the heads of a token lie side by side."""
    vector, *forms = stored_forms(dtype, head_dim)
    scales = [
        torch.zeros((3, num_kv_heads, 32, *form.shape), dtype=form.dtype) for form in forms for _ in range(2)
    ]
    tensors = []
    for _ in range(2):
        shape = (3, 32, num_kv_heads) if by_token else (3, num_kv_heads, 32)
        stored = torch.zeros((*shape, *vector.shape), dtype=vector.dtype)
        tensors.append(stored.transpose(1, 2) if by_token else stored)
    return PagedCache(*tensors, *scales)


@pytest.mark.parametrize("by_token", [False, True], ids=["by-head", "by-token"])
@pytest.mark.parametrize("cache_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 64, 128, 160])
def test_rope_and_store(
    context: Context, head_dim: int, dtype: torch.dtype, cache_dtype: torch.dtype, by_token: bool
) -> None:
    T, H, K = 11, 4, 2
    q, kv = torch.randn(T, H, head_dim).to(dtype), torch.randn(T, K, 2, head_dim).to(dtype)
    angles = torch.rand(T, head_dim) * 6
    slots = torch.randperm(96)[:T]
    expected_q, expected = q.clone(), empty_cache(K, head_dim, cache_dtype, by_token=by_token)
    rope_and_store_reference(expected_q, kv, angles.cos(), angles.sin(), slots, expected)
    cache = empty_cache(K, head_dim, cache_dtype, by_token=by_token)
    rope_and_store(context, q, kv, angles.cos(), angles.sin(), slots, cache)
    close(q, expected_q)
    close(cache.keys, expected.keys, torch.bfloat16 if torch.bfloat16 in (dtype, cache_dtype) else None)
    assert torch.equal(cache.values, expected.values)


@pytest.mark.parametrize("by_token", [False, True], ids=["by-head", "by-token"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cache_dtype", "d"), [(torch.int8, 96), (INT4, 96), (INT4, 80)], ids=str)
def test_rope_and_store_integers(
    context: Context, cache_dtype: torch.dtype, d: int, dtype: torch.dtype, by_token: bool
) -> None:
    T, H, K = 9, 4, 2
    q, kv = torch.randn(T, H, d).to(dtype), torch.randn(T, K, 2, d).to(dtype)
    kv[3, 1] = 0  # a vector without a largest value
    angles, slots = torch.rand(T, d) * 6, torch.randperm(96)[:T]
    expected, cache = (empty_cache(K, d, cache_dtype, by_token=by_token) for _ in range(2))
    rope_and_store_reference(q.clone(), kv, angles.cos(), angles.sin(), slots, expected)
    rope_and_store(context, q, kv, angles.cos(), angles.sin(), slots, cache)
    assert torch.equal(cache.values, expected.values)
    assert cache.value_scales is not None and expected.value_scales is not None
    assert torch.equal(cache.value_scales, expected.value_scales)
    assert cache.key_scales is not None and expected.key_scales is not None
    close(cache.key_scales, expected.key_scales, torch.bfloat16 if cache_dtype == INT4 else dtype)
    steps = expected.key_scales if cache_dtype == torch.int8 else expected.key_scales[..., 1]
    step = float(steps.max())
    keys = dequantise_vectors(cache.keys, cache.key_scales)
    wanted = dequantise_vectors(expected.keys, expected.key_scales)
    off = (keys - wanted).abs() / step  # rotated keys differ in their last bits
    assert float(off.max()) < 1.1
    assert float((off > 0.2).float().mean()) < (0.001 if dtype == torch.float32 else 0.05)


def test_obstacles() -> None:
    x = torch.zeros(2, 64)
    assert "differ in dtype" in str(swiglu_obstacle(x, x.double()))
    assert "dtypes" in str(norm_obstacle(x, torch.ones(64).bfloat16()))
    assert "shapes" in str(norm_obstacle(x, torch.ones(63)))
    cache = empty_cache(2, 64, torch.float32, by_token=False)
    q, kv, table, slots = torch.zeros(2, 4, 64), torch.zeros(2, 2, 2, 64), x, torch.arange(2)
    assert rope_obstacle(q, kv, table, table, slots, cache) is None
    assert "int64" in str(rope_obstacle(q, kv, table, table, slots.int(), cache))
    small = PagedCache(cache.keys[:, :, :24], cache.values[:, :, :24])
    assert "multiple of 16" in str(rope_obstacle(q, kv, table, table, slots, small))

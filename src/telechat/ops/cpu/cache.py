"""The paged cache as the kernels see it, and the rotary embedding that writes into it.

Shapes: T new tokens, H query heads, K key/value heads, d head dimension. Knows nothing of who owns which
block.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from telechat.ops.cpu import library
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.tensors import CACHE_TYPES, ELEMENT_TYPES, element_obstacle, huge_zeros, require
from telechat.ops.paged import PagedCache, stored_forms

BLOCK_SIZE_UNIT = 16
HEAD_DIM_UNIT = 16
MAX_HEAD_DIM = 256


def allocate_cache(
    context: Context, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype
) -> PagedCache:
    """An empty cache as `PagedCache.allocate` makes it, in huge pages.

    Raises:
        MemoryError: there is not so much.
    """
    shape = (num_blocks, num_kv_heads, block_size)
    vector, *scales = stored_forms(dtype, head_dim)
    vectors = [huge_zeros(context, (*shape, *vector.shape), vector.dtype) for _ in range(2)]
    small = [torch.zeros((*shape, *form.shape), dtype=form.dtype) for form in scales for _ in range(2)]
    return PagedCache(*vectors, *small)


def cache_struct(cache: PagedCache) -> library.Cache:
    """What C is given; it holds addresses only, so the cache must outlive it."""
    block_stride, head_stride, token_stride = _byte_strides(cache.keys)
    struct = library.Cache(
        keys=cache.keys.data_ptr(),
        values=cache.values.data_ptr(),
        dtype=CACHE_TYPES[cache.dtype],
        num_kv_heads=cache.num_kv_heads,
        head_dim=cache.head_dim,
        block_size=cache.block_size,
        block_stride=block_stride,
        head_stride=head_stride,
        token_stride=token_stride,
    )
    if cache.key_scales is not None and cache.value_scales is not None:
        struct.key_scales, struct.value_scales = cache.key_scales.data_ptr(), cache.value_scales.data_ptr()
        struct.scale_block_stride, struct.scale_head_stride, _ = _byte_strides(cache.key_scales)
    return struct


def _byte_strides(stored: Tensor) -> tuple[int, int, int]:
    """Bytes between blocks, heads and tokens."""
    block, head, token = stored.stride()[:3]
    width = stored.element_size()
    return block * width, head * width, token * width


def cache_obstacle(cache: PagedCache) -> str | None:
    """Why the kernels cannot use this cache, or None."""
    keys, values = cache.keys, cache.values
    if keys.shape != values.shape or keys.stride() != values.stride() or keys.dtype != values.dtype:
        return "keys and values differ in shape, strides or dtype"
    if keys.device.type != "cpu":
        return f"the cache is on {keys.device}"
    if keys.dim() != 4 or keys.stride(3) != 1:
        return "the cache is not [num_blocks, K, block_size, d] with d innermost"
    form = form_obstacle(torch.float32, cache.dtype, cache.head_dim, cache.block_size)
    return form or _scales_obstacle(cache)


def form_obstacle(dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int, block_size: int) -> str | None:
    """Why the kernels have no attention of this form, or None; `dtype` is that of queries."""
    for name, given, known in (
        ("queries", dtype, ELEMENT_TYPES),
        ("cache", cache_dtype, CACHE_TYPES),
    ):
        if given not in known:
            names = ", ".join(str(each).removeprefix("torch.") for each in known)
            return f"the {name} would be {str(given).removeprefix('torch.')}, not one of {names}"
    if block_size % BLOCK_SIZE_UNIT:
        return f"the block size {block_size} is not a multiple of {BLOCK_SIZE_UNIT}"
    if head_dim % HEAD_DIM_UNIT or head_dim > MAX_HEAD_DIM:
        return f"the head dimension {head_dim} is not a multiple of {HEAD_DIM_UNIT} up to {MAX_HEAD_DIM}"
    return None


def _scales_obstacle(cache: PagedCache) -> str | None:
    """What is wrong with the scales of integers, or None."""
    forms = stored_forms(cache.dtype, cache.head_dim)[1:]
    given = [scales for scales in (cache.key_scales, cache.value_scales) if scales is not None]
    if not forms:
        return None
    shape = (*cache.keys.shape[:3], *forms[0].shape)
    # Those of a head's tokens follow one another.
    fits = [x.shape == shape and x.dtype == forms[0].dtype and x[0, 0].is_contiguous() for x in given]
    if len(given) < 2 or not all(fits) or given[0].stride() != given[1].stride():
        names = [str(dtype).removeprefix("torch.") for dtype in (cache.dtype, forms[0].dtype)]
        return f"an {names[0]} cache needs {names[1]} scales {list(shape)} for keys and values"
    return None


def rope_obstacle(
    q_THd: Tensor, kv_TK2d: Tensor, cos_Td: Tensor, sin_Td: Tensor, slots_T: Tensor, cache: PagedCache
) -> str | None:
    """Why `rope_and_store` cannot take these, or None."""
    T, _, d = q_THd.shape
    if kv_TK2d.shape != (T, cache.num_kv_heads, 2, d) or cache.head_dim != d:
        return f"keys and values of shape {tuple(kv_TK2d.shape)} do not fit the queries or the cache"
    if kv_TK2d.dtype != q_THd.dtype or cos_Td.dtype != torch.float32 or sin_Td.dtype != torch.float32:
        return "queries and keys must have one dtype, cos and sin float32"
    if cos_Td.shape != (T, d) or sin_Td.shape != (T, d):
        return f"cos and sin must be [{T}, {d}]"
    if slots_T.dtype != torch.int64 or slots_T.shape != (T,) or not slots_T.is_contiguous():
        return f"slots must be int64 [{T}]"
    return cache_obstacle(cache) or element_obstacle(q_THd, kv_TK2d, cos_Td, sin_Td)


def rope_and_store(
    context: Context,
    q_THd: Tensor,
    kv_TK2d: Tensor,
    cos_Td: Tensor,
    sin_Td: Tensor,
    slots_T: Tensor,
    cache: PagedCache,
) -> None:
    """Rotate the queries in place; write rotated keys and plain values into the cache.

    Args:
        kv_TK2d: the fused projection's output, per head key then value.
        slots_T: int64 place of each token in the cache, block * block_size + offset.
    """
    require(rope_obstacle(q_THd, kv_TK2d, cos_Td, sin_Td, slots_T, cache))
    rope = library.Rope(
        queries=q_THd.data_ptr(),
        kv=kv_TK2d.data_ptr(),
        cos=cos_Td.data_ptr(),
        sin=sin_Td.data_ptr(),
        slots=slots_T.data_ptr(),
        cache=cache_struct(cache),
        dtype=ELEMENT_TYPES[q_THd.dtype],
        num_heads=q_THd.shape[1],
    )
    context.library.tc_rope_and_store(context.handle, ctypes.byref(rope), q_THd.shape[0])

"""The paged cache on CUDA, by Triton: rotary embedding with the write into the cache, and attention over it.

The contract is that of `telechat.ops.paged`. Shapes: T new tokens of S sequences, H query heads, K key/value
heads, d head dimension. Long sequences are cut into stretches of keys whose results are merged; where the
cuts are depends only on the number of sequences and the longest that one of them may be, so that a captured
graph can be replayed. Whether the device can run Triton is said by `launch`. Knows nothing of models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from telechat.ops.cuda.launch import (
    dtype_obstacle,
    interpreted,
    next_power_of_2,
    num_processors,
    on_device,
    operand,
)
from telechat.ops.paged import INT4, INT4_GROUP, PagedCache, Sequences

MAX_HEAD_DIM = 256
# Caches of integers, whose vectors have scales.
_BITS = {torch.int8: 8, INT4: 4}
_HEADS_PER_PROGRAM = 4
# Fewer keys than this to a program are not worth the merge; more would let the others wait for the longest.
_LEAST_SPLIT_KEYS = 64
_MOST_SPLIT_KEYS = 512
_MAX_SPLITS = 64
# Programs that a processor works on side by side.
_PROGRAMS_AT_ONCE = 2
# Up to this many new tokens of each sequence the rows of a step are few and the keys are split.
_FEW_NEW_TOKENS = 16


def form_obstacle(dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the kernels have no attention of this form, or None; `dtype` is that of queries."""
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        return f"the head dimension {head_dim} is not an even number up to {MAX_HEAD_DIM}"
    if cache_dtype == INT4 and head_dim % 4:
        return f"the head dimension {head_dim} is not a multiple of 4, as an int4 cache needs"
    stored = dtype if cache_dtype in _BITS else cache_dtype
    return dtype_obstacle(dtype, stored)


def cache_obstacle(cache: PagedCache) -> str | None:
    """Why the kernels cannot use this cache, or None."""
    pairs = [(cache.keys, cache.values)]
    if cache.key_scales is not None and cache.value_scales is not None:
        pairs.append((cache.key_scales, cache.value_scales))
    elif cache.dtype in _BITS:
        return f"an int{_BITS[cache.dtype]} cache needs scales"
    for keys, values in pairs:
        if keys.shape != values.shape or keys.stride() != values.stride() or keys.dtype != values.dtype:
            return "keys and values differ in shape, strides or dtype"
    if cache.keys.dim() != 4 or cache.keys.stride(3) != 1:
        return "the cache is not [num_blocks, K, block_size, d] with d innermost"
    return None


def _scales(cache: PagedCache) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Scales and their strides; where there are none, tensors that the kernels do not read."""
    if cache.key_scales is None or cache.value_scales is None:
        return cache.keys, cache.values, (0, 0, 0)
    return cache.key_scales, cache.value_scales, cache.key_scales.stride()[:3]


def rope_and_store(
    q_THd: Tensor, kv_TK2d: Tensor, cos_Td: Tensor, sin_Td: Tensor, slots_T: Tensor, cache: PagedCache
) -> None:
    """As `telechat.ops.paged.rope_and_store_reference`: queries in place, keys and values into the cache."""
    from telechat.ops.cuda.kernels import rope

    T, H, d = q_THd.shape
    assert (
        q_THd.stride(2) == kv_TK2d.stride(3) == cos_Td.stride(1) == 1 and cos_Td.stride() == sin_Td.stride()
    )
    if T == 0:
        return
    K = cache.num_kv_heads
    key_scales, value_scales, scale_strides = _scales(cache)
    query_programs = -(-H // _HEADS_PER_PROGRAM)
    with on_device(q_THd):
        rope.rope_and_store[(T, query_programs + -(-K // _HEADS_PER_PROGRAM))](
            q_THd,
            kv_TK2d,
            cos_Td,
            sin_Td,
            slots_T,
            cache.keys,
            cache.values,
            key_scales,
            value_scales,
            q_THd.stride(0),
            q_THd.stride(1),
            kv_TK2d.stride(0),
            kv_TK2d.stride(1),
            kv_TK2d.stride(2),
            cos_Td.stride(0),
            *cache.keys.stride()[:3],
            *scale_strides,
            H,
            K,
            d // 2,
            query_programs,
            BLOCK_SIZE=cache.block_size,
            HEADS=_HEADS_PER_PROGRAM,
            HALF=next_power_of_2(d // 2),
            BITS=_BITS.get(cache.dtype, 0),
            GROUPS=-(-d // INT4_GROUP),
            GROUP=INT4_GROUP,
            num_warps=1,
        )


def paged_attention(q_THd: Tensor, cache: PagedCache, sequences: Sequences) -> Tensor:
    """Attention of rotated queries, [T, H, d] in their dtype; the new tokens are already in the cache."""
    out = torch.empty(q_THd.shape, dtype=q_THd.dtype, device=q_THd.device)
    if q_THd.shape[0] == 0:
        return out
    most_new, longest = sequences.most_new, sequences.longest
    if most_new is None:  # waits for the device; the engine has counted
        most_new = int(sequences.query_starts.diff().max())
    if longest is None:
        longest = sequences.block_tables.shape[1] * cache.block_size
    split_keys, num_splits = longest, 1
    if most_new <= _FEW_NEW_TOKENS:
        wanted = -(
            -_PROGRAMS_AT_ONCE * num_processors(q_THd.device) // (sequences.count * cache.num_kv_heads)
        )
        split_keys, num_splits = split_plan(longest, wanted)
    _attend(q_THd, out, cache, sequences, most_new, split_keys, num_splits)
    return out


def split_plan(longest: int, wanted: int) -> tuple[int, int]:
    """(keys to a stretch, stretches) for sequences of up to `longest` tokens.

    Args:
        wanted: stretches of a sequence that would keep all processors busy.
    """
    split_keys = _LEAST_SPLIT_KEYS
    while split_keys * wanted < longest and split_keys < _MOST_SPLIT_KEYS:
        split_keys *= 2
    while split_keys * _MAX_SPLITS < longest:
        split_keys *= 2
    return split_keys, max(-(-longest // split_keys), 1)


def _tile(groups: int, most_new: int, block_d: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """(rows of a program, keys of a step, warps, pipeline stages), within 99 KiB of shared memory.

    Of the stages one is taken by the block table, whose numbers must be there before keys can be fetched.
    """
    if interpreted():  # each program costs the same there, whatever its size
        return next_power_of_2(max(16, groups * min(most_new, 64))), 32, 4, 1
    wide = block_d > 128 or dtype == torch.float32
    if most_new * groups <= 16:
        return 16, 32 if wide else 64, 4, 3 if wide else 4
    least = next_power_of_2(groups)
    if dtype == torch.float32:
        return max(32, least), 32, 4, 2
    if most_new * groups <= 64 or wide:
        return max(64, least), 32 if wide else 64, 4, 2
    return max(128, least), 64, 8, 3


def _attend(
    q_THd: Tensor,
    out: Tensor,
    cache: PagedCache,
    sequences: Sequences,
    most_new: int,
    split_keys: int,
    num_splits: int,
) -> None:
    from telechat.ops.cuda.kernels import attention

    T, H, d = q_THd.shape
    K = cache.num_kv_heads
    groups = H // K
    block_d = max(next_power_of_2(d), 16)
    block_m, block_n, num_warps, num_stages = _tile(groups, most_new, block_d, q_THd.dtype)
    tiles = -(-most_new // (block_m // groups))
    key_scales, value_scales, scale_strides = _scales(cache)
    operand_dtype, precision = operand(q_THd.dtype)
    is_split = num_splits > 1
    part_out = part_lse = out
    if is_split:
        part_out = torch.empty((T, H, num_splits, block_d), dtype=torch.float32, device=out.device)
        part_lse = torch.empty((T, H, num_splits), dtype=torch.float32, device=out.device)
    with on_device(q_THd):
        attention.attend[(sequences.count * tiles, K, num_splits)](
            q_THd,
            out,
            part_out,
            part_lse,
            cache.keys,
            cache.values,
            key_scales,
            value_scales,
            sequences.query_starts,
            sequences.kv_lengths,
            sequences.block_tables,
            q_THd.stride(0),
            q_THd.stride(1),
            out.stride(0),
            out.stride(1),
            *cache.keys.stride()[:3],
            *scale_strides,
            sequences.block_tables.stride(0),
            H,
            num_splits,
            tiles,
            split_keys,
            math.log2(math.e) / math.sqrt(d),
            GROUPS=groups,
            HEAD_DIM=d,
            BLOCK_SIZE=cache.block_size,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_D=block_d,
            BITS=_BITS.get(cache.dtype, 0),
            GROUP=INT4_GROUP,
            SPLIT=is_split,
            OPERAND=operand_dtype,
            PRECISION=precision,
            num_warps=num_warps,
            num_stages=num_stages,
        )
    if is_split:
        _merge(part_out, part_lse, out)


def _merge(part_out: Tensor, part_lse: Tensor, out: Tensor) -> None:
    """Put the results of a sequence's stretches together.

    Args:
        part_out: fp32 [T, H, stretches, d or more].
        part_lse: fp32 [T, H, stretches] logarithms to base 2 of the sums of weights.
        out: [T, H, d], filled.
    """
    from telechat.ops.cuda.kernels import attention

    T, H, d = out.shape
    _, _, num_splits, block_d = part_out.shape
    with on_device(out):
        attention.merge[(T, H)](
            part_out,
            part_lse,
            out,
            out.stride(0),
            out.stride(1),
            H,
            num_splits,
            HEAD_DIM=d,
            BLOCK_D=block_d,
            BLOCK_SPLITS=next_power_of_2(num_splits),
            num_warps=4,
        )

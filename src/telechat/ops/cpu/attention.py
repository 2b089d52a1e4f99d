"""Attention over a paged cache, for decoding and for chunks of prompts in one call.

Shapes: T new tokens of S sequences side by side, H query heads, K key/value heads, d head dimension. A token
sees all earlier ones of its sequence and itself. A row's result depends neither on the other rows nor on how
a prompt was cut into chunks.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from telechat.ops.cpu.cache import cache_obstacle, cache_struct
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.library import Attention
from telechat.ops.cpu.tensors import ELEMENT_TYPES, element_obstacle, require
from telechat.ops.paged import PagedCache, Sequences


def sequences_obstacle(sequences: Sequences) -> str | None:
    """What is wrong with the tensors' form, or None."""
    tensors = (sequences.query_starts, sequences.kv_lengths, sequences.block_tables)
    for tensor in tensors:
        if tensor.dtype != torch.int32 or not tensor.is_contiguous() or tensor.device.type != "cpu":
            return "query_starts, kv_lengths and block_tables must be contiguous int32 on the CPU"
    count = sequences.count
    if sequences.query_starts.shape != (count + 1,) or sequences.block_tables.shape[:1] != (count,):
        return "query_starts, kv_lengths and block_tables disagree on the number of sequences"
    return None


def sequences_fields(sequences: Sequences) -> dict[str, int]:
    """The fields that C structs have about sequences."""
    return {
        "num_sequences": sequences.count,
        "num_decoding": sequences.num_decoding,
        "max_blocks": sequences.block_tables.shape[1],
        "query_starts": sequences.query_starts.data_ptr(),
        "kv_lengths": sequences.kv_lengths.data_ptr(),
        "block_tables": sequences.block_tables.data_ptr(),
    }


def obstacle(q_THd: Tensor, cache: PagedCache, sequences: Sequences) -> str | None:
    """Why `paged_attention` cannot take these, or None."""
    if q_THd.dim() != 3 or q_THd.shape[2] != cache.head_dim or q_THd.shape[1] % cache.num_kv_heads:
        return f"queries of shape {tuple(q_THd.shape)} do not fit the cache {tuple(cache.keys.shape)}"
    return cache_obstacle(cache) or sequences_obstacle(sequences) or element_obstacle(q_THd)


def paged_attention(
    context: Context, q_THd: Tensor, cache: PagedCache, sequences: Sequences, *, deterministic: bool = True
) -> Tensor:
    """Attention of rotated queries, [T, H, d] in their dtype; the new tokens are already in the cache.

    Args:
        deterministic: in fp32. Otherwise, where the machine has AMX, sequences that do not decode take bf16
            queries and weights over a cache that is not fp32.
    """
    require(obstacle(q_THd, cache, sequences))
    out = torch.empty_like(q_THd)
    attention = Attention(
        queries=q_THd.data_ptr(),
        out=out.data_ptr(),
        cache=cache_struct(cache),
        dtype=ELEMENT_TYPES[q_THd.dtype],
        deterministic=int(deterministic),
        num_heads=q_THd.shape[1],
        **sequences_fields(sequences),
    )
    context.library.tc_attend(context.handle, ctypes.byref(attention))
    return out

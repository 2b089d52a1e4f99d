"""The fused operators of torch_npu under our contracts; where it has none, torch's own.

Written after torch_npu's documentation and checked with a stand-in that records calls; not yet run on an
Ascend device. torch_npu is imported when it is first needed. Shapes: T new tokens of S sequences, H query
heads, K key/value heads, d head dimension, F width.
"""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from telechat.ops.fused import Projection
from telechat.ops.paged import PagedCache, Sequences, gather, store_reference
from telechat.ops.quantized import QuantizedWeight

# torch_npu's name for "row i sees the keys up to the i-th from the end"; its mask has always this size.
_RIGHT_DOWN_CAUSAL = 3
_MASK_SIZE = 2048


def torch_npu() -> Any:
    """The package torch_npu."""
    return importlib.import_module("torch_npu")


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, add: Tensor | None = None) -> Tensor:
    """weight * x / rms(x) over the last axis of x [rows, width]; first x += `add`, in place."""
    if add is None:
        normed: Tensor = torch_npu().npu_rms_norm(x, weight, eps)[0]
        return normed
    normed, _, total = torch_npu().npu_add_rms_norm(x, add, weight, eps)
    x.copy_(total)
    return normed


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, each [rows, F]."""
    return _swiglu_of_both(torch.cat([gate, up], dim=-1))


def _swiglu_of_both(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up of [rows, 2 F], the gates first."""
    out: Tensor = torch_npu().npu_swiglu(gate_and_up, dim=-1)
    return out


def bind_linear(weight: Tensor, bias: Tensor | None, *, gated: bool = False) -> Projection:
    """As `telechat.ops.fused.BindLinear`."""
    if gated:
        return lambda x: _swiglu_of_both(F.linear(x, weight, bias))
    return lambda x: F.linear(x, weight, bias)


def bind_quantized(weight: QuantizedWeight, bias: Tensor | None, *, gated: bool = False) -> Projection:
    """As `telechat.ops.fused.BindQuantized`; the weight is unpacked for each call."""

    def product(x: Tensor) -> Tensor:
        out = F.linear(x, weight.dequantise(x.dtype), bias)
        return _swiglu_of_both(out) if gated else out

    return product


def rope_and_store(
    q_THd: Tensor, kv_TK2d: Tensor, cos_Td: Tensor, sin_Td: Tensor, slots_T: Tensor, cache: PagedCache
) -> None:
    """As `telechat.ops.paged.rope_and_store_reference`; in fp32: tables rounded to bf16 are coarse."""
    cos, sin = cos_Td[None, :, None], sin_Td[None, :, None]

    def rotated(x_THd: Tensor) -> Tensor:
        turned: Tensor = torch_npu().npu_rotary_mul(x_THd[None].float().contiguous(), cos, sin)
        return turned[0].to(x_THd.dtype)

    keys, values = kv_TK2d.unbind(2)
    store_reference(rotated(keys), values, slots_T, cache)
    q_THd.copy_(rotated(q_THd))


def paged_attention(q_THd: Tensor, cache: PagedCache, sequences: Sequences) -> Tensor:
    """Attention of rotated queries, [T, H, d]; the new tokens are already in the cache."""
    starts, lengths = sequences.bounds()
    if q_THd.shape[0] == len(lengths) and sequences.most_new == 1:
        return _decode(q_THd, cache, sequences, lengths)
    out = torch.empty_like(q_THd)
    for index, length in enumerate(lengths):
        first, end = starts[index], starts[index + 1]
        if first < end:
            blocks = sequences.block_tables[index, : -(-length // cache.block_size)].long()
            keys, values = gather(cache, blocks, length, q_THd.dtype)
            out[first:end] = _chunk(q_THd[first:end], keys, values)
    return out


def _decode(q_SHd: Tensor, cache: PagedCache, sequences: Sequences, lengths: list[int]) -> Tensor:
    """One new token of each sequence, keys and values read where they lie."""
    out, _ = torch_npu().npu_fused_infer_attention_score(
        q_SHd[:, :, None].contiguous(),
        cache.keys,
        cache.values,
        actual_seq_lengths_kv=lengths,
        block_table=sequences.block_tables,
        num_heads=q_SHd.shape[1],
        num_key_value_heads=cache.num_kv_heads,
        scale=1 / math.sqrt(cache.head_dim),
        input_layout="BNSD",
        block_size=cache.block_size,
    )
    found: Tensor = out[:, :, 0]
    return found


def _chunk(q_SHd: Tensor, keys_TKd: Tensor, values_TKd: Tensor) -> Tensor:
    """New tokens of one sequence, keys and values gathered."""
    q, keys, values = (x.transpose(0, 1)[None].contiguous() for x in (q_SHd, keys_TKd, values_TKd))
    is_causal = q_SHd.shape[0] > 1
    out, _ = torch_npu().npu_fused_infer_attention_score(
        q,
        keys,
        values,
        atten_mask=_causal_mask(q.device) if is_causal else None,
        sparse_mode=_RIGHT_DOWN_CAUSAL if is_causal else 0,
        num_heads=q.shape[1],
        num_key_value_heads=keys.shape[1],
        scale=1 / math.sqrt(q.shape[-1]),
        input_layout="BNSD",
    )
    found: Tensor = out[0].transpose(0, 1)
    return found


@cache
def _causal_mask(device: torch.device) -> Tensor:
    """bool, True where a key is not seen."""
    return torch.ones(_MASK_SIZE, _MASK_SIZE, dtype=torch.bool, device=device).triu(1)

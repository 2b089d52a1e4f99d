"""Attention over a paged cache, for decoding and for chunks of prompts in one call.

Shapes: T new tokens of S sequences side by side, H query heads, K key/value heads, d head dimension. A token
sees all earlier ones of its sequence and itself. A row's result depends neither on the other rows nor on how
a prompt was cut into chunks.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from telechat.ops.cpu.cache import PagedCache, cache_obstacle
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.library import Attention
from telechat.ops.cpu.tensors import ELEMENT_TYPES, element_obstacle, require


@dataclass(frozen=True)
class Sequences:
    """Which rows belong to which sequence, and where its cache is; int32, contiguous.

    Attributes:
        query_starts: [S + 1]: sequence s has the new tokens query_starts[s] .. query_starts[s + 1] - 1.
        kv_lengths: [S]: tokens of the sequence in the cache, the new ones included.
        block_tables: [S, most blocks]: its blocks in order; entries past its length are not read.
    """

    query_starts: Tensor
    kv_lengths: Tensor
    block_tables: Tensor

    @classmethod
    def of(cls, num_new: list[int], kv_lengths: list[int], block_tables: list[list[int]]) -> Sequences:
        """From plain lists; tables are filled up to the longest."""
        starts = [0]
        for count in num_new:
            starts.append(starts[-1] + count)
        longest = max((len(table) for table in block_tables), default=0)
        filled = [table + [0] * (longest - len(table)) for table in block_tables]
        return cls(
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(kv_lengths, dtype=torch.int32),
            torch.tensor(filled, dtype=torch.int32).view(len(num_new), longest),
        )

    @property
    def count(self) -> int:
        """Number of sequences."""
        return self.kv_lengths.shape[0]

    def obstacle(self) -> str | None:
        """What is wrong with the tensors' form, or None."""
        for tensor in (self.query_starts, self.kv_lengths, self.block_tables):
            if tensor.dtype != torch.int32 or not tensor.is_contiguous() or tensor.device.type != "cpu":
                return "query_starts, kv_lengths and block_tables must be contiguous int32 on the CPU"
        if self.query_starts.shape != (self.count + 1,) or self.block_tables.shape[:1] != (self.count,):
            return "query_starts, kv_lengths and block_tables disagree on the number of sequences"
        return None

    def geometry(self) -> dict[str, int]:
        """The fields that C structs have about sequences."""
        return {
            "num_sequences": self.count,
            "max_blocks": self.block_tables.shape[1],
            "query_starts": self.query_starts.data_ptr(),
            "kv_lengths": self.kv_lengths.data_ptr(),
            "block_tables": self.block_tables.data_ptr(),
        }


def obstacle(q_THd: Tensor, cache: PagedCache, sequences: Sequences) -> str | None:
    """Why `paged_attention` cannot take these, or None."""
    if q_THd.dim() != 3 or q_THd.shape[2] != cache.keys.shape[3] or q_THd.shape[1] % cache.keys.shape[1]:
        return f"queries of shape {tuple(q_THd.shape)} do not fit the cache {tuple(cache.keys.shape)}"
    return cache_obstacle(cache) or sequences.obstacle() or element_obstacle(q_THd)


def paged_attention(context: Context, q_THd: Tensor, cache: PagedCache, sequences: Sequences) -> Tensor:
    """Attention of rotated queries, [T, H, d] in their dtype; the new tokens are already in the cache."""
    require(obstacle(q_THd, cache, sequences))
    out = torch.empty_like(q_THd)
    attention = Attention(
        queries=q_THd.data_ptr(),
        out=out.data_ptr(),
        keys=cache.keys.data_ptr(),
        values=cache.values.data_ptr(),
        dtype=ELEMENT_TYPES[q_THd.dtype],
        num_heads=q_THd.shape[1],
        **cache.geometry(),
        **sequences.geometry(),
    )
    context.library.tc_attend(context.handle, ctypes.byref(attention))
    return out


def paged_attention_reference(q_THd: Tensor, cache: PagedCache, sequences: Sequences) -> Tensor:
    """The same in plain torch, fp32 inside."""
    out = torch.empty_like(q_THd)
    groups = q_THd.shape[1] // cache.keys.shape[1]
    starts = sequences.query_starts.tolist()
    for index, length in enumerate(sequences.kv_lengths.tolist()):
        num_blocks = -(-length // cache.block_size)
        blocks = sequences.block_tables[index, :num_blocks].long()
        keys, values = (
            stored[blocks].permute(0, 2, 1, 3).flatten(0, 1)[:length].float().repeat_interleave(groups, dim=1)
            for stored in (cache.keys, cache.values)
        )
        q = q_THd[starts[index] : starts[index + 1]].float()
        scores = torch.einsum("shd,thd->hst", q, keys) / math.sqrt(q.shape[-1])
        positions = torch.arange(length - len(q), length)
        hidden = torch.arange(length) > positions[:, None]
        weights = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1)
        out[starts[index] : starts[index + 1]] = torch.einsum("hst,thd->shd", weights, values).to(out.dtype)
    return out

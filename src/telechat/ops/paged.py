"""The paged key/value cache of one layer and attention over it, in plain torch for any device.

Faster forms (C, Triton, flash-attn) have the same contract and run the same tests. A cache holds keys and
values in blocks of `block_size` tokens; which blocks a sequence owns, and in what order, is said by its row
of `Sequences.block_tables`. Shapes: T new tokens of S sequences side by side, H query heads, K key/value
heads, d head dimension. Knows nothing of who owns which block, nor of models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from telechat.device import CPU
from telechat.ops.attention import sdpa_attention

# What a cache with two elements to a byte is called; torch knows the name, its type stubs do not.
INT4: torch.dtype = torch.int4  # type: ignore[attr-defined]
INT4_GROUP = 32
_INT8_MOST = 127
_INT4_MOST = 15


@dataclass(frozen=True)
class PagedCache:
    """Keys and values of one layer, each [num_blocks, K, block_size, d], any strides with d innermost.

    Integers are made of each token's vector of each head when it is stored, and need no calibration:

    - int8 has a scale for the vector: vector = integers * scale.
    - int4 has a minimum and a scale for each group of 32 elements, of which the last may have fewer: vector =
      codes * scale + minimum. A byte holds the codes 0 .. 15 of two neighbours, the earlier one low.

    Attributes:
        keys, values: fp32, bf16 or fp16; int8; uint8 [num_blocks, K, block_size, d / 2] for int4.
        key_scales, value_scales: of int8 fp32 [num_blocks, K, block_size]; of int4 bf16 [num_blocks, K,
            block_size, groups, 2], (minimum, scale); otherwise None.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @classmethod
    def allocate(
        cls,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> PagedCache:
        """An empty cache. Its memory is zero, so that what a kernel reads past a length is a number.

        Args:
            dtype: of what is stored; INT4 stands for the form with two elements to a byte.
        """
        shape = (num_blocks, num_kv_heads, block_size)
        tensors = [
            torch.zeros((*shape, *form.shape), dtype=form.dtype, device=device)
            for form in stored_forms(dtype, head_dim)
            for _ in range(2)
        ]
        return cls(*tensors)

    @staticmethod
    def bytes_per_block(num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype) -> int:
        """Memory of one block of one layer: keys, values and, for integers, their scales."""
        vector = sum(math.prod(form.shape) * form.dtype.itemsize for form in stored_forms(dtype, head_dim))
        return 2 * num_kv_heads * block_size * vector

    @property
    def dtype(self) -> torch.dtype:
        """What is stored; INT4 where `keys` has two elements to a byte."""
        return INT4 if self.keys.dtype == torch.uint8 else self.keys.dtype

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.keys.shape[2]

    @property
    def num_kv_heads(self) -> int:
        """K."""
        return self.keys.shape[1]

    @property
    def head_dim(self) -> int:
        """d."""
        return self.keys.shape[3] * (2 if self.dtype == INT4 else 1)


class StoredForm(NamedTuple):
    """What is kept of one vector: a tensor of this shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def stored_forms(dtype: torch.dtype, head_dim: int) -> list[StoredForm]:
    """Of a vector of `head_dim` elements in a cache of `dtype`: itself and, for integers, its scales."""
    if dtype == torch.int8:
        return [StoredForm(dtype, (head_dim,)), StoredForm(torch.float32, ())]
    if dtype == INT4:
        assert head_dim % 2 == 0, head_dim
        groups = -(-head_dim // INT4_GROUP)
        return [StoredForm(torch.uint8, (head_dim // 2,)), StoredForm(torch.bfloat16, (groups, 2))]
    return [StoredForm(dtype, (head_dim,))]


@dataclass(frozen=True)
class Sequences:
    """Which rows belong to which sequence, and where its cache is; int32, contiguous.

    Attributes:
        query_starts: [S + 1]: sequence s has the new tokens query_starts[s] .. query_starts[s + 1] - 1.
        kv_lengths: [S]: tokens of the sequence in the cache, the new ones included.
        block_tables: [S, most blocks]: its blocks in order; entries past its length are not read.
        most_new, longest: the largest number of new tokens and the largest kv_length, for kernels that are
            laid out on the host and must not wait for the device; None when nobody counted.
        num_blocks: entries of each table; None: those that its length needs.
        on_host: the same on the host, where these tensors were brought to a device.
        num_decoding: so many at the beginning have tokens of answers, the others tokens of prompts. Kernels
            may compute the two in different ways, and thus each token in the same way whatever is beside it.
    """

    query_starts: Tensor
    kv_lengths: Tensor
    block_tables: Tensor
    most_new: int | None = None
    longest: int | None = None
    num_blocks: Sequence[int] | None = None
    on_host: Sequences | None = None
    num_decoding: int = 0

    @classmethod
    def of(
        cls,
        num_new: Sequence[int],
        kv_lengths: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        *,
        num_decoding: int = 0,
    ) -> Sequences:
        """From plain lists, on the CPU; tables are filled up to the longest."""
        starts = [0]
        for count in num_new:
            starts.append(starts[-1] + count)
        widest = max((len(table) for table in block_tables), default=0)
        filled = [[*table, *[0] * (widest - len(table))] for table in block_tables]
        return cls(
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(kv_lengths, dtype=torch.int32),
            torch.tensor(filled, dtype=torch.int32).view(len(num_new), widest),
            max(num_new, default=0),
            max(kv_lengths, default=0),
            [len(table) for table in block_tables],
            num_decoding=num_decoding,
        )

    @property
    def count(self) -> int:
        """S."""
        return self.kv_lengths.shape[0]

    def to(self, device: torch.device) -> Sequences:
        """The same on another device."""
        return Sequences(
            self.query_starts.to(device, non_blocking=True),
            self.kv_lengths.to(device, non_blocking=True),
            self.block_tables.to(device, non_blocking=True),
            self.most_new,
            self.longest,
            self.num_blocks,
            self.on_host or self,
            self.num_decoding,
        )

    def bounds(self) -> tuple[list[int], list[int]]:
        """`query_starts` and `kv_lengths` as lists; waits for a device only where nobody kept them."""
        known = self.on_host or self
        return known.query_starts.tolist(), known.kv_lengths.tolist()


# As `rope_and_store_reference`.
RopeAndStore = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, PagedCache], None]
# Attention of rotated queries: (queries [T, H, d], cache, sequences) -> [T, H, d] in the queries' dtype.
PagedAttentionFunction = Callable[[Tensor, PagedCache, Sequences], Tensor]


def quantise_vectors(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Vectors [..., d] as a cache of `dtype` keeps them, and their scales; see `PagedCache`."""
    return _as_int4(x.float()) if dtype == INT4 else _as_int8(x.float())


def dequantise_vectors(stored: Tensor, scales: Tensor) -> Tensor:
    """The fp32 vectors [..., d] that `quantise_vectors` has stored."""
    if stored.dtype == torch.int8:
        return stored * scales[..., None]
    codes = torch.stack([stored & _INT4_MOST, stored >> 4], dim=-1).flatten(-2)
    each = scales.float().repeat_interleave(INT4_GROUP, dim=-2)[..., : codes.shape[-1], :]
    return codes * each[..., 1] + each[..., 0]


def _as_int4(x: Tensor) -> tuple[Tensor, Tensor]:
    """A group's least element becomes 0 and its greatest 15, but for the rounding of its scales to bf16."""
    codes, scales = [], []
    for group in torch.split(x, INT4_GROUP, dim=-1):
        low, high = group.aminmax(dim=-1, keepdim=True)
        rounded = torch.cat([low, (high - low) / _INT4_MOST], dim=-1).bfloat16()
        minimum, scale = torch.split(rounded.float(), 1, dim=-1)
        inverse = torch.where(scale > 0, torch.ones_like(scale) / scale, 0.0)
        codes.append(((group - minimum) * inverse).round().clamp(0, _INT4_MOST).to(torch.uint8))
        scales.append(rounded)
    whole = torch.cat(codes, dim=-1)
    return whole[..., ::2] | whole[..., 1::2] << 4, torch.stack(scales, dim=-2)


def _as_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest magnitude becomes 127."""
    largest = x.abs().amax(-1, keepdim=True)
    # A division of tensors: `127 / largest` is 127 times a rounded reciprocal in torch, and ties then fall
    # otherwise than in the kernels.
    inverse = torch.full_like(largest, _INT8_MOST) / largest
    integers = torch.where(largest > 0, x * inverse, 0.0).round().clamp(-_INT8_MOST, _INT8_MOST)
    return integers.to(torch.int8), (largest / _INT8_MOST).squeeze(-1)


def store_reference(k_TKd: Tensor, v_TKd: Tensor, slots_T: Tensor, cache: PagedCache) -> None:
    """Write new keys (rotated) and values into the cache.

    Args:
        slots_T: int64 place of each token, block * block_size + offset.
    """
    blocks, places = slots_T // cache.block_size, slots_T % cache.block_size
    for new, stored, scales in (
        (k_TKd, cache.keys, cache.key_scales),
        (v_TKd, cache.values, cache.value_scales),
    ):
        if scales is None:
            stored[blocks, :, places] = new.to(stored.dtype)
        else:
            stored[blocks, :, places], scales[blocks, :, places] = quantise_vectors(new, cache.dtype)


def rope_and_store_reference(
    q_THd: Tensor, kv_TK2d: Tensor, cos_Td: Tensor, sin_Td: Tensor, slots_T: Tensor, cache: PagedCache
) -> None:
    """Rotate the queries in place; write rotated keys and plain values into the cache.

    Args:
        kv_TK2d: the fused projection's output, per head key then value.
        cos_Td, sin_Td: fp32 rotary rows of the tokens.
        slots_T: as in `store_reference`.
    """
    keys, values = kv_TK2d.unbind(2)
    store_reference(rotated(keys, cos_Td, sin_Td), values, slots_T, cache)
    q_THd.copy_(rotated(q_THd, cos_Td, sin_Td))


def rotated(x_Thd: Tensor, cos_Td: Tensor, sin_Td: Tensor) -> Tensor:
    """Pairs (j, j + d/2) of every head turned in fp32; in x's dtype."""
    x = x_Thd.float()
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cos_Td[:, None] + turned * sin_Td[:, None]).to(x_Thd.dtype)


def gather(cache: PagedCache, blocks: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first `length` keys and values of the sequence with these blocks (int64), each [length, K, d]."""

    def gathered(stored: Tensor, scales: Tensor | None) -> Tensor:
        found = _side_by_side(stored, blocks)[:, :length]
        if scales is not None:
            found = dequantise_vectors(found, _side_by_side(scales, blocks)[:, :length])
        return found.to(dtype).transpose(0, 1)

    return gathered(cache.keys, cache.key_scales), gathered(cache.values, cache.value_scales)


def _side_by_side(stored: Tensor, blocks: Tensor) -> Tensor:
    """Blocks of [num_blocks, K, block_size, ...] as [K, tokens of all, ...]."""
    if stored.device.type == CPU.type:
        # One copy, where an index makes two.
        return torch.cat([stored[block] for block in blocks.tolist()], dim=1)
    return stored[blocks].transpose(0, 1).flatten(1, 2)


def paged_attention_reference(q_THd: Tensor, cache: PagedCache, sequences: Sequences) -> Tensor:
    """Attention of rotated queries over the cache, fp32 inside; the new tokens are already in the cache.

    A token sees all earlier ones of its sequence and itself. Query head h reads key/value head h // (H / K);
    scores are scaled by 1/sqrt(d). Returns [T, H, d] in the queries' dtype.
    """
    out = torch.empty_like(q_THd)
    groups = q_THd.shape[1] // cache.num_kv_heads
    device = q_THd.device
    starts = sequences.query_starts.tolist()
    for index, length in enumerate(sequences.kv_lengths.tolist()):
        blocks = sequences.block_tables[index, : -(-length // cache.block_size)].long()
        keys, values = (
            x.repeat_interleave(groups, dim=1) for x in gather(cache, blocks, length, torch.float32)
        )
        q = q_THd[starts[index] : starts[index + 1]].float()
        scores = torch.einsum("shd,thd->hst", q, keys) / math.sqrt(q.shape[-1])
        positions = torch.arange(length - len(q), length, device=device)
        hidden = torch.arange(length, device=device) > positions[:, None]
        weights = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1)
        out[starts[index] : starts[index + 1]] = torch.einsum("hst,thd->shd", weights, values).to(out.dtype)
    return out


def paged_attention_sdpa(q_THd: Tensor, cache: PagedCache, sequences: Sequences) -> Tensor:
    """The same through torch's fused attention, where no kernel of ours can run.

    Chunks of prompts are taken one by one, decoding sequences of like length together.
    """
    out = torch.empty_like(q_THd)
    starts, lengths = sequences.bounds()
    decoding = []
    for index, length in enumerate(lengths):
        num_new = starts[index + 1] - starts[index]
        if num_new == 1:
            decoding.append(index)
        elif num_new:
            rows = slice(starts[index], starts[index + 1])
            out[rows] = _attend_chunk(q_THd[rows], cache, sequences.block_tables[index], length)
    for group in groups_of_like_length(decoding, lengths):
        if len(group) == 1:  # nothing to pad, nothing to mask
            row, length = starts[group[0]], lengths[group[0]]
            rows = slice(row, row + 1)
            out[rows] = _attend_chunk(q_THd[rows], cache, sequences.block_tables[group[0]], length)
            continue
        rows_S = torch.tensor([starts[index] for index in group], device=q_THd.device)
        most = -(-lengths[group[-1]] // cache.block_size)
        tables = sequences.block_tables[group, :most]
        out[rows_S] = _attend_tokens(q_THd[rows_S], cache, tables, [lengths[index] for index in group])
    return out


def groups_of_like_length(indices: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """The indices by growing length, cut into groups whose shortest has at least half of the longest."""
    groups: list[list[int]] = []
    for index in sorted(indices, key=lambda index: lengths[index]):
        if groups and 2 * lengths[groups[-1][0]] >= lengths[index]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _attend_chunk(q_SHd: Tensor, cache: PagedCache, table: Tensor, length: int) -> Tensor:
    """Attention of the last S tokens of one sequence, [S, H, d]."""
    num_new = len(q_SHd)
    keys, values = gather(cache, table[: -(-length // cache.block_size)].long(), length, q_SHd.dtype)
    mask = None
    if 1 < num_new < length:
        positions = torch.arange(length - num_new, length, device=q_SHd.device)
        mask = (torch.arange(length, device=q_SHd.device) <= positions[:, None])[None, None]
    return sdpa_attention(q_SHd[None], keys[None], values[None], mask=mask, is_causal=num_new == length)[0]


def _attend_tokens(q_SHd: Tensor, cache: PagedCache, tables: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention of one token of each of S sequences, [S, H, d]; `tables` int32 [S, blocks of the longest]."""
    count, num_blocks = tables.shape
    longest = num_blocks * cache.block_size
    seen = torch.arange(longest, device=q_SHd.device) < torch.tensor(lengths, device=q_SHd.device)[:, None]
    # Of tables, entries past a sequence's end may be anything.
    flat = tables.long().clamp(min=0, max=cache.keys.shape[0] - 1).flatten()
    keys, values = (
        # A mask does not stop what is not a number; a block may hold such of its owner before.
        x.view(count, longest, cache.num_kv_heads, cache.head_dim).masked_fill_(~seen[:, :, None, None], 0)
        for x in gather(cache, flat, count * longest, q_SHd.dtype)
    )
    return sdpa_attention(q_SHd[:, None], keys, values, mask=seen[:, None, None])[:, 0]

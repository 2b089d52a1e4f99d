"""Ring attention: every rank keeps its queries while keys and values travel round the ranks.

Positions are dealt out in pairs of chunks, one from the front and one from the back of the row (zigzag), so
that causality leaves every rank the same work. Blocks are joined by their log-sum-exp; in the backward pass
the gradients of keys and values travel with them and come home. Conversations packed into one row stay apart.
Plain torch over point-to-point sends, so it runs on any device; it keeps 512 rows of scores of a chunk at a
time. Knows nothing of models.

Shapes: B rows, s local positions, c = s / 2 a chunk, H query heads, K key/value heads, g = H / K, d head
dimension, n ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

c10d: Any = dist
_ROWS = 512


def zigzag_columns(rank: int, size: int, length: int) -> Tensor:
    """int64 [length / size] columns of a row that a rank holds: chunk `rank` and its mirror image.

    `length` is a multiple of twice the number of ranks.
    """
    chunk = length // (2 * size)
    assert chunk * 2 * size == length, (length, size)
    columns = torch.arange(length)
    mirror = 2 * size - 1 - rank
    return torch.cat([columns[part * chunk : (part + 1) * chunk] for part in (rank, mirror)])


def ring_attention(
    q_BsHd: Tensor, k_BsKd: Tensor, v_BsKd: Tensor, group: Any, segments_BS: Tensor | None
) -> Tensor:
    """Causal attention [B, s, H, d] of this rank's positions over the positions of all ranks.

    Args:
        q_BsHd, k_BsKd, v_BsKd: of the columns that `zigzag_columns` gives this rank; rotated already.
        group: the ranks that share the row.
        segments_BS: conversation of every position of the whole row; None where each row is one.
    """
    out: Tensor = _Ring.apply(q_BsHd, k_BsKd, v_BsKd, group, segments_BS)  # type: ignore[no-untyped-call]
    return out


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: Any, segments: Tensor | None) -> Tensor:
        B, s, H, d = q.shape
        ring = _Neighbours(group)
        queries = _by_head(q, k.shape[2])
        own = torch.stack([_by_head(k, k.shape[2]), _by_head(v, k.shape[2])])  # [2, B, K, 1, s, d]
        out = torch.zeros(queries.shape, dtype=torch.float32, device=q.device)
        lse = torch.full(queries.shape[:-1], -math.inf, dtype=torch.float32, device=q.device)
        travelling = own
        for step in range(ring.size):
            last = step == ring.size - 1
            arriving = None if last else ring.start(travelling)
            for block in _blocks(ring, step, s, segments, q.device):
                _add_block(queries, travelling, out, lse, block)
            travelling = travelling if arriving is None else arriving.wait()
        ctx.save_for_backward(queries, own, out, lse, *([] if segments is None else [segments]))
        ctx.group, ctx.dtype = group, q.dtype
        return _by_position(out.to(q.dtype), B, s, H, d)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, own, out, lse, *rest = ctx.saved_tensors
        segments = rest[0] if rest else None
        B, K, g, s, d = queries.shape
        ring = _Neighbours(ctx.group)
        d_out = _by_head(grads[0], K)
        # Each row's sum of d_out * out; it takes the place of the softmax's own reduction.
        delta = (d_out.float() * out).sum(-1)
        d_queries = torch.zeros(queries.shape, dtype=torch.float32, device=queries.device)
        travelling = own
        d_travelling = torch.zeros(own.shape, dtype=torch.float32, device=own.device)
        for step in range(ring.size):
            last = step == ring.size - 1
            arriving = None if last else ring.start(travelling)
            for block in _blocks(ring, step, s, segments, own.device):
                _add_gradients(queries, travelling, d_out, lse, delta, d_queries, d_travelling, block)
            travelling = travelling if arriving is None else arriving.wait()
            # One send more than the keys: the last brings the gradients home.
            d_travelling = ring.start(d_travelling).wait()
        d_k, d_v = (_by_position(part.to(ctx.dtype), B, s, K, d) for part in d_travelling)
        return _by_position(d_queries.to(ctx.dtype), B, s, K * g, d), d_k, d_v, None, None


class _Block:
    """Some of this rank's queries against one chunk of keys.

    Attributes:
        rows, keys: slices of the local and of the travelling positions.
        hidden: bool [B or 1, 1, 1, rows, keys] where a query must not look, or None.
    """

    def __init__(self, rows: slice, keys: slice, hidden: Tensor | None) -> None:
        self.rows, self.keys, self.hidden = rows, keys, hidden


def _blocks(
    ring: _Neighbours, step: int, s: int, segments: Tensor | None, device: torch.device
) -> Iterator[_Block]:
    """What this rank's queries see of the keys that are with it at a step.

    At step 0, where the keys are its own, the chunk that holds the query itself comes first: every row has
    seen something before it meets a block in which it sees nothing.
    """
    chunk = s // 2
    owner = (ring.rank - step) % ring.size
    mine = (ring.rank, 2 * ring.size - 1 - ring.rank)
    theirs = (owner, 2 * ring.size - 1 - owner)
    for place, number in enumerate(mine):
        for key_place, key_number in sorted(enumerate(theirs), key=lambda pair: pair[1] != number):
            if key_number > number:
                continue
            keys = slice(key_place * chunk, (key_place + 1) * chunk)
            for start in range(0, chunk, _ROWS):
                stop = min(start + _ROWS, chunk)
                rows = slice(place * chunk + start, place * chunk + stop)
                columns = (number * chunk + start, number * chunk + stop)
                yield _Block(rows, keys, _hidden(columns, key_number * chunk, chunk, segments, device))


def _hidden(
    rows: tuple[int, int], first_key: int, num_keys: int, segments: Tensor | None, device: torch.device
) -> Tensor | None:
    """Where the columns rows[0] .. rows[1]-1 must not look, among `num_keys` columns from `first_key`."""
    hidden = None
    if first_key + num_keys > rows[0]:
        keys = torch.arange(first_key, first_key + num_keys, device=device)
        hidden = (keys > torch.arange(*rows, device=device)[:, None])[None, None, None]
    if segments is not None:
        other = segments[:, slice(*rows), None] != segments[:, None, first_key : first_key + num_keys]
        hidden = other[:, None, None] if hidden is None else hidden | other[:, None, None]
    return hidden


def _scores(queries: Tensor, keys: Tensor, block: _Block) -> Tensor:
    """fp32 [B, K, g, rows, keys] scaled scores, -inf where hidden."""
    scores = (queries[..., block.rows, :] @ keys[..., block.keys, :].transpose(-1, -2)).float()
    scores = scores / math.sqrt(queries.shape[-1])
    return scores if block.hidden is None else scores.masked_fill(block.hidden, -math.inf)


def _add_block(queries: Tensor, travelling: Tensor, out: Tensor, lse: Tensor, block: _Block) -> None:
    """Merge a block into the running output and log-sum-exp."""
    scores = _scores(queries, travelling[0], block)
    before = lse[..., block.rows]
    after = torch.logaddexp(before, scores.logsumexp(-1))
    seen = torch.exp(scores - after[..., None]).to(travelling.dtype) @ travelling[1][..., block.keys, :]
    out[..., block.rows, :] = out[..., block.rows, :] * torch.exp(before - after)[..., None] + seen.float()
    lse[..., block.rows] = after


def _add_gradients(
    queries: Tensor,
    travelling: Tensor,
    d_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    d_queries: Tensor,
    d_travelling: Tensor,
    block: _Block,
) -> None:
    """Add a block's share of the gradients of queries, keys and values."""
    keys, values = (part[..., block.keys, :] for part in travelling)
    d_rows = d_out[..., block.rows, :]
    weights = torch.exp(_scores(queries, travelling[0], block) - lse[..., block.rows, None])
    d_weights = (d_rows @ values.transpose(-1, -2)).float()
    d_scores = weights * (d_weights - delta[..., block.rows, None]) / math.sqrt(queries.shape[-1])
    d_scores, weights = d_scores.to(queries.dtype), weights.to(queries.dtype)
    d_queries[..., block.rows, :] += (d_scores @ keys).float()
    # The heads of a group share their key/value head: their gradients add up.
    d_keys = d_scores.transpose(-1, -2) @ queries[..., block.rows, :]
    d_values = weights.transpose(-1, -2) @ d_rows
    d_travelling[0][..., block.keys, :] += d_keys.float().sum(2, keepdim=True)
    d_travelling[1][..., block.keys, :] += d_values.float().sum(2, keepdim=True)


class _Neighbours:
    """The next and the previous rank of a ring."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.next = c10d.get_global_rank(group, (self.rank + 1) % self.size)
        self.previous = c10d.get_global_rank(group, (self.rank - 1) % self.size)

    def start(self, tensor: Tensor) -> _Arrival:
        """Send a tensor on and begin to receive the like of it."""
        tensor = tensor.contiguous()
        received = torch.empty_like(tensor)
        operations = [
            c10d.P2POp(dist.isend, tensor, self.next, self.group),
            c10d.P2POp(dist.irecv, received, self.previous, self.group),
        ]
        return _Arrival(tensor, received, c10d.batch_isend_irecv(operations))


class _Arrival:
    """A tensor on its way; the one that was sent is kept until it has left."""

    def __init__(self, sent: Tensor, received: Tensor, work: list[Any]) -> None:
        self._sent, self._received, self._work = sent, received, work

    def wait(self) -> Tensor:
        """The tensor, once it is here."""
        for work in self._work:
            work.wait()
        return self._received


def _by_head(x_BsHd: Tensor, num_kv_heads: int) -> Tensor:
    """[B, s, H, d] -> [B, K, g, s, d], contiguous."""
    B, s, H, d = x_BsHd.shape
    return x_BsHd.reshape(B, s, num_kv_heads, H // num_kv_heads, d).permute(0, 2, 3, 1, 4).contiguous()


def _by_position(x: Tensor, B: int, s: int, heads: int, d: int) -> Tensor:
    """[B, K, g, s, d] -> [B, s, heads, d]."""
    return x.permute(0, 3, 1, 2, 4).reshape(B, s, heads, d)

"""Ring attention on one rank, where its blocks are joined as on many, beside plain attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from telechat.ops.attention import reference_attention
from telechat.train.distributed import ring
from telechat.train.distributed.ring import ring_attention, zigzag_columns
from telechat.train.forward import segment_mask


class Alone:
    """The ring of one rank: what it sends comes back to it."""

    rank, size = 0, 1

    def __init__(self, group: Any) -> None:
        pass

    def start(self, tensor: torch.Tensor) -> Alone:
        self.tensor = tensor
        return self

    def wait(self) -> torch.Tensor:
        return self.tensor


@pytest.mark.parametrize("packed", [False, True])
def test_blocks_join_to_plain_attention(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "_Neighbours", Alone)
    monkeypatch.setattr(ring, "_ROWS", 3)  # blocks of rows that do not divide the chunk
    B, S, H, K, d = 2, 16, 4, 2, 8
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(B, S, heads, d, dtype=torch.float64, generator=generator, requires_grad=True)
        for heads in (H, K, K)
    ]
    segments = torch.tensor([[0] * 5 + [1] * 9 + [-1] * 2, [0] * 16], dtype=torch.int32) if packed else None
    weight = torch.randn(B, S, H, d, dtype=torch.float64, generator=generator)

    def results(out: torch.Tensor) -> list[torch.Tensor]:
        return [out, *torch.autograd.grad((out * weight).sum(), tensors)]

    mask = None if segments is None else segment_mask(segments, torch.float32)
    plain = results(reference_attention(*tensors, mask=mask, is_causal=mask is None))
    joined = results(ring_attention(*tensors, None, segments))
    for expected, found in zip(plain, joined, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_column_is_dealt_once_and_the_work_is_even(size: int) -> None:
    length = 4 * size
    dealt = [zigzag_columns(rank, size, length) for rank in range(size)]
    assert sorted(torch.cat(dealt).tolist()) == list(range(length))
    # Column c sees c + 1 keys.
    assert len({int((columns + 1).sum()) for columns in dealt}) == 1

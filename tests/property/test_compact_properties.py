"""bf16 in 12 bits: whatever the bits are, they come back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telechat.ops.cpu import library
from telechat.ops.cpu.context import LEVELS, available_levels, shared_context
from telechat.ops.cpu.weights import PackedWeight

pytestmark = pytest.mark.skipif(library.obstacle() is not None, reason="no CPU kernels here")


@settings(max_examples=100, deadline=None)
@given(
    level=st.sampled_from(LEVELS),
    rows=st.integers(1, 40),
    columns=st.integers(1, 100),
    exponents=st.lists(st.integers(0, 255), min_size=1, max_size=20),
    num_rare=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_any_bits(
    level: str, rows: int, columns: int, exponents: list[int], num_rare: int, seed: int
) -> None:
    count, random = rows * columns, torch.Generator().manual_seed(seed)
    chosen = torch.tensor(exponents)[torch.randint(len(exponents), (count,), generator=random)]
    chosen[torch.randint(count, (num_rare,), generator=random)] = 17
    rest = torch.randint(2**8, (count,), generator=random)
    bits = ((rest & 0x80) << 8 | chosen << 7 | (rest & 0x7F)).to(torch.int16).view(rows, columns)
    context = shared_context(2, level if level in available_levels() else None)
    weight = PackedWeight.pack(context, bits.view(torch.bfloat16), "compact")
    assert torch.equal(weight.take_rows(torch.arange(rows)).view(torch.int16), bits)

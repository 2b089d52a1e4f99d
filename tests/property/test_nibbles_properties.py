"""Whatever the integers: decoding gives back what was encoded, and any changed byte is noticed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from telechat.checkpoint.nibbles import decode, encode
from telechat.errors import CheckpointError

INTEGERS = st.one_of(st.integers(-8, 8), st.integers(-128, 127))


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    rows, columns = draw(st.integers(0, 7)), draw(st.integers(0, 9))
    size = rows * columns
    values = draw(st.lists(INTEGERS, min_size=size, max_size=size))
    repeats = draw(st.sampled_from([1, 1, 1, 40_000]))  # more than a tile
    return torch.tensor(values, dtype=torch.int8).view(rows, columns).repeat(1, repeats)[:, :90_001]


@given(matrices())
def test_there_and_back(values: Tensor) -> None:
    encoded = encode(values)
    out = decode(encoded, "w")
    assert out.shape == values.shape and out.dtype == torch.int8 and torch.equal(out, values)
    num_large = int(((values > 7) | (values < -7)).sum())
    assert len(encoded.content) == (values.numel() + 1) // 2 + num_large


@given(matrices(), st.data())
def test_a_changed_byte_is_noticed(values: Tensor, data: st.DataObject) -> None:
    encoded = encode(values)
    if not len(encoded.content):
        return
    content = encoded.content.clone()
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 127))
    with pytest.raises(CheckpointError):
        decode(dataclasses.replace(encoded, content=content), "w")

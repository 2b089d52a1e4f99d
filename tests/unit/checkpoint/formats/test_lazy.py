"""Lazy tensors read the same numbers as the tensors they stand for, whole and in any window."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from telechat.checkpoint.formats import file_tensor
from telechat.checkpoint.formats.file_tensor import FileTensor
from telechat.checkpoint.formats.lazy import (
    HeldTensor,
    LazyTensor,
    cast,
    cut,
    join,
    mapped,
    same_numbers,
    stack,
    transposed,
    whole,
    windows,
    with_shape,
    zeros,
)
from telechat.errors import CheckpointError

Pair = tuple[LazyTensor, Tensor]


def numbers(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def on_disk(folder: Path, tensor: Tensor, pieces: int = 1) -> FileTensor:
    """A tensor in a file, its bytes in several runs with rubbish between them."""
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    step = max(1, -(-len(content) // pieces))
    path = folder / "tensor"
    spans, out = [], b"xxx"
    for start in range(0, len(content), step):
        spans.append((len(out), len(content[start : start + step])))
        out += content[start : start + step] + b"rubbish"
    path.write_bytes(out)
    return FileTensor(path, spans, tensor.shape, tensor.dtype)


def check(pair: Pair, draw: st.DataObject | None = None) -> None:
    found, expected = pair
    assert found.shape == tuple(expected.shape)
    assert torch.equal(found.read(), expected)
    if draw is not None:
        window = tuple(tuple(sorted(draw.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in found.shape)
        assert torch.equal(found.read(window), expected[tuple(slice(*part) for part in window)])


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("staging", [64, 1 << 20])
def test_file_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int, staging: int) -> None:
    monkeypatch.setattr(file_tensor, "STAGING_BYTES", staging)
    tensor = numbers(5, 7, 6)
    stored = on_disk(tmp_path, tensor, pieces)
    for window in (
        whole((5, 7, 6)),
        ((1, 4), (2, 3), (0, 6)),
        ((0, 5), (0, 7), (2, 5)),
        ((4, 5), (6, 7), (1, 2)),
    ):
        part = tensor[tuple(slice(*bounds) for bounds in window)]
        assert torch.equal(stored.read(window), part)
        out = torch.empty(part.transpose(0, 2).shape, dtype=torch.bfloat16).transpose(0, 2)
        stored.read_into(out, window)
        assert torch.equal(out, part.to(torch.bfloat16))


def test_scalars_and_nothing(tmp_path: Path) -> None:
    assert on_disk(tmp_path, torch.tensor(3.0)).read().item() == 3.0
    assert on_disk(tmp_path, torch.empty(0, 4)).read().shape == (0, 4)


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    stored = on_disk(tmp_path, numbers(8, 8))
    stored.path.write_bytes(stored.path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="ends 159 bytes early"):
        stored.read()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_compositions(data: st.DataObject) -> None:
    """Random towers of operations."""
    tensor = numbers(
        data.draw(st.integers(1, 6)) * 2, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    )
    pair: Pair = (HeldTensor(tensor), tensor)
    for _ in range(data.draw(st.integers(1, 5))):
        found, expected = pair
        kind = data.draw(st.sampled_from(["cut", "join", "transpose", "unit", "map", "stack", "cast"]))
        axis = data.draw(st.integers(0, expected.dim() - 1))
        if kind == "cut":
            start, stop = sorted(data.draw(st.tuples(*[st.integers(0, expected.shape[axis])] * 2)))
            if start == stop:
                continue
            pair = cut(found, axis, start, stop), expected.narrow(axis, start, stop - start)
        elif kind == "join":
            pair = join([found, found], axis), torch.cat([expected, expected], axis)
        elif kind == "transpose":
            other = data.draw(st.integers(0, expected.dim() - 1))
            pair = transposed(found, axis, other), expected.transpose(axis, other)
        elif kind == "unit":
            shape = (*expected.shape[:axis], 1, *expected.shape[axis:])
            pair = with_shape(found, shape), expected.reshape(shape)
        elif kind == "map":
            pair = mapped(found, lambda rows: rows * 2, block=data.draw(st.integers(1, 3))), expected * 2
        elif kind == "stack":
            pair = stack([found, found]), torch.stack([expected, expected])
        else:
            pair = cast(found, torch.float64), expected.double()
            pair = cast(pair[0], torch.float32), pair[1].float()
    check(pair, data)


def test_blocks_of_rows_come_together() -> None:
    tensor = numbers(12, 2)

    def reverse(rows: Tensor) -> Tensor:
        assert len(rows) % 4 == 0
        return rows.unflatten(0, (-1, 4)).flip(1).flatten(0, 1)

    found = mapped(HeldTensor(tensor), reverse, block=4)
    assert torch.equal(found.read(((5, 7), (0, 2))), reverse(tensor)[5:7])


@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 64))
def test_windows_tile_a_tensor_in_memory_order(shape: list[int], most: int) -> None:
    tensor = numbers(*shape)
    parts = [tensor[tuple(slice(*b) for b in w)].reshape(-1) for w in windows(shape, 4, most)]
    assert torch.equal(torch.cat(parts), tensor.reshape(-1))
    assert all(part.nbytes <= max(most, 4) for part in parts)


def test_same_numbers_and_zeros() -> None:
    first, second = HeldTensor(numbers(3, 4)), HeldTensor(numbers(3, 4) + torch.eye(3, 4))
    assert same_numbers(first, first)
    assert not same_numbers(first, second)
    assert not same_numbers(first, HeldTensor(numbers(4, 3)))
    assert torch.equal(zeros((2, 3), torch.float16).read(), torch.zeros(2, 3, dtype=torch.float16))

"""The codec of sparse weights: the bytes it makes, how few they are, and damage, which has a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from telechat.checkpoint.nibbles import TILE, Encoded, decode, encode
from telechat.errors import CheckpointError
from telechat.ops.int8 import quantise_rows_sparsely


def sparse_weight(rows: int, columns: int) -> Tensor:
    """Gaussian weights, single large ones and columns of large ones, as `--fraction 0.011` makes them."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    weight[torch.rand(rows, columns, generator=generator) < 0.005] *= 8
    weight[:, ::511] *= 6
    return quantise_rows_sparsely(weight, 0.011)[0]


def test_the_bytes() -> None:
    encoded = encode(torch.tensor([[1, -7, 7, 100, 0]], dtype=torch.int8))
    assert encoded.content.tolist() == [0x19, 0x0F, 0x88 - 256, 100]  # the last half is only there to fill
    assert encoded.info.tolist() == [65536, 1, 5, 1, 1]
    count = int.from_bytes(encoded.index[:4].numpy().tobytes(), "little")
    assert count == 1 and encoded.index.shape == (8,) and encoded.index.dtype == torch.int8
    assert encode(torch.tensor([[-8, -128, 127, 8]], dtype=torch.int8)).content.tolist() == [
        *(0, 0),
        *(-8, -128, 127, 8),
    ]


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (3, 65537), (2, TILE)])
def test_sizes(shape: tuple[int, int]) -> None:
    values = torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    encoded = encode(values)
    assert len(encoded.index) == 8 * -(-values.numel() // TILE)
    assert torch.equal(decode(encoded, "w"), values)


def test_sparse_weights_become_half() -> None:
    weight = sparse_weight(512, 2048)
    encoded = encode(weight)
    assert 0.5 < encoded.num_bytes / weight.nbytes < 0.52
    assert torch.equal(decode(encoded, "w"), weight)
    assert torch.equal(decode(encode(weight.t()), "w"), weight.t())


def changed(tensor: Tensor, place: int, value: int) -> Tensor:
    out = tensor.clone()
    out[place] = value
    return out


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("content", lambda t: t[:-1], "bytes; .* follow"),
        ("content", lambda t: changed(t, 70000, int(t[70000]) ^ 64), "tile 2 of 3 is not as it was written"),
        ("content", lambda t: changed(t, 0, 0), "tile 0 of 3 is not as it was written"),
        ("content", lambda t: changed(t, -1, int(t[-1]) ^ 1), "tile 2 of 3 is not as it was written"),
        ("index", lambda t: t[8:], "bytes; .* follow"),
        ("index", lambda t: changed(t, 0, int(t[0]) ^ 1), "tile 0 of 3 is not as it was written"),
        ("index", lambda t: changed(t, 3, 127), "tile 0 of 3 is not as it was written"),
        ("info", lambda t: t[:4], r"its info has the shape \[4\]"),
        ("info", lambda t: changed(t, 4, 9), "compressed in version 9"),
        ("info", lambda t: changed(t, 3, -1), r"speaks of \[-1, "),
        ("info", lambda t: changed(t, 1, 1 << 60), "listed integers"),
        ("info", lambda t: changed(t, 2, 1 << 60), "bytes; .* follow"),
    ],
)
def test_damage_is_named(field: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    encoded = encode(sparse_weight(80, 2048))
    damaged = dataclasses.replace(encoded, **{field: change(getattr(encoded, field))})
    with pytest.raises(CheckpointError, match=message) as caught:
        decode(damaged, "transformer.h.0.mlp.up_proj.weight")
    assert "transformer.h.0.mlp.up_proj.weight" in caught.value.message


def test_lists_that_belong_to_no_tile() -> None:
    encoded = encode(torch.zeros(2, 2, dtype=torch.int8))
    more = torch.cat([encoded.content, torch.zeros(1, dtype=torch.int8)])
    with pytest.raises(CheckpointError, match="its tiles list 0 integers, its info 1"):
        decode(Encoded(more, encoded.index, changed(encoded.info, 1, 1)), "w")

"""The codec of bf16 weights: every bit comes back, three quarters are left, and damage has a name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from telechat.checkpoint.exponents import decode_floats, encode_floats
from telechat.errors import CheckpointError


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(ours.view(torch.int16), theirs.view(torch.int16))


def test_every_number_comes_back() -> None:
    """All 65,536 of them, infinities and NaN included."""
    weight = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for shape in ((256, 256), (1, 65536), (4096, 16)):
        decoded = decode_floats(encode_floats(weight.view(shape)), "w")
        assert decoded.dtype == torch.bfloat16 and same_bits(decoded, weight.view(shape))


@pytest.mark.parametrize("scale", [1e-30, 0.02, 3e4])
def test_weights_become_three_quarters(scale: float) -> None:
    """Wherever the exponents lie: the middle one follows them."""
    weight = (torch.randn(300, 700, generator=torch.Generator().manual_seed(0)) * scale).bfloat16()
    encoded = encode_floats(weight)
    assert encoded.num_bytes < 0.76 * weight.nbytes
    assert encoded.rest.shape == weight.shape and encoded.exponents.info.shape == (6,)
    assert same_bits(decode_floats(encoded, "w"), weight)
    assert same_bits(decode_floats(encode_floats(weight.t()), "w"), weight.t().contiguous())


def test_damage_is_named() -> None:
    encoded = encode_floats(torch.ones(4, 6).bfloat16())
    info = encoded.exponents.info.clone()
    info[5] = 256
    wrong = dataclasses.replace(encoded.exponents, info=info)
    for damaged, message in (
        (dataclasses.replace(encoded, exponents=wrong), "its middle exponent is 256"),
        (dataclasses.replace(encoded, rest=encoded.rest.view(6, 4)), r"exponents of shape \[4, 6\]"),
    ):
        with pytest.raises(CheckpointError, match=f"layer is damaged: .*{message}"):
            decode_floats(damaged, "layer")
    content = encoded.exponents.content.clone()
    content[3] ^= 1
    with pytest.raises(CheckpointError, match="tile 0 of 1"):
        decode_floats(
            dataclasses.replace(encoded, exponents=dataclasses.replace(encoded.exponents, content=content)),
            "layer",
        )

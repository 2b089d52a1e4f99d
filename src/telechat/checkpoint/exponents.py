"""bf16 weights without loss in three quarters of their size: their exponents lie close together.

The eight exponent bits of each number, less the exponent in the middle of the fifteen that occur most, become
a matrix of small integers for `nibbles`; sign and mantissa stay a byte each. The middle one stands behind the
five numbers of `info`. Knows nothing of files or layers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telechat.checkpoint.nibbles import TILE, Encoded, decode, encode
from telechat.errors import CheckpointError

_WINDOW = 15


@dataclass(frozen=True)
class EncodedFloats:
    """An encoded bf16 weight.

    Attributes:
        rest: uint8 [N, K], the sign in the highest bit, the mantissa in the others.
        exponents: what `nibbles` makes of the exponents, with `info` int64 [6].
    """

    rest: Tensor
    exponents: Encoded

    @property
    def num_bytes(self) -> int:
        """All tensors together."""
        return self.rest.nbytes + self.exponents.num_bytes


def encode_floats(weight_NK: Tensor) -> EncodedFloats:
    """Encode bf16 [N, K]."""
    bits: Any = weight_NK.contiguous().view(torch.int16).numpy().view(np.uint16)
    exponents = (bits >> 7).astype(np.uint8)
    counts = np.bincount(exponents.reshape(-1), minlength=256)
    middle = int(np.convolve(counts, np.ones(_WINDOW), "same").argmax())
    encoded = encode(torch.from_numpy((exponents - np.uint8(middle)).view(np.int8)))
    rest = ((bits >> 8) & 0x80 | bits & 0x7F).astype(np.uint8)
    info = torch.cat([encoded.info, torch.tensor([middle])])
    return EncodedFloats(torch.from_numpy(rest), dataclasses.replace(encoded, info=info))


def decode_floats(encoded: EncodedFloats, name: str) -> Tensor:
    """bf16 [N, K], bit for bit what was encoded.

    Args:
        name: of the weight, for errors.

    Raises:
        CheckpointError: the tensors contradict one another; exponents that are not as they were written.
    """
    info = encoded.exponents.info
    middle = int(info[5])
    if not 0 <= middle < 256:
        raise CheckpointError(f"{name} is damaged: its middle exponent is {middle}.")
    integers = decode(dataclasses.replace(encoded.exponents, info=info[:5]), name)
    if integers.shape != encoded.rest.shape:
        raise CheckpointError(
            f"{name} is damaged: exponents of shape {list(integers.shape)}, mantissas of shape "
            f"{list(encoded.rest.shape)}."
        )
    out = torch.empty(integers.shape, dtype=torch.bfloat16)
    bits: Any = out.view(torch.int16).view(-1).numpy().view(np.uint16)
    exponents: Any = integers.view(-1).numpy().view(np.uint8)
    rest: Any = encoded.rest.view(-1).numpy()
    for start in range(0, len(bits), TILE):
        piece = slice(start, start + TILE)
        wide = rest[piece].astype(np.uint16)
        bits[piece] = (exponents[piece] + np.uint8(middle)).astype(np.uint16) << 7
        bits[piece] |= wide & 0x7F
        bits[piece] |= (wide & 0x80) << 8
    return out

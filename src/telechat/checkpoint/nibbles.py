"""Our lossless codec for sparse int8 weights (W8A8SC): four bits for a small integer, twelve for a large one.

The integers of a weight [N, K] are taken row by row. One within -7 to 7 is the nibble 1 to 15, itself plus 8;
any other is the nibble 0 and one byte in a list. `content` is all nibbles, of two neighbours the earlier in
the low half, and then the list. Every 65,536 integers are a tile. `index` has eight bytes for each: how many
of its integers are in the list, and the CRC-32 of its nibbles and its bytes of the list, both little-endian.
`info` is the integers of a tile, the length of the list, K, N and the format's version.

This is not the layout of the chip vendor's W8A8SC, which is not public. Knows nothing of files or layers.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telechat.errors import CheckpointError
from telechat.ops.pages import empty_pages

CODEC = "telechat-nibbles"
VERSION = 1
# Decoding works on a tile at a time, so that it stays in a core's cache.
TILE = 65536
_HIGHEST = 7
_SHIFT = 8
_MARK = 0
_INDEX_BYTES = 8

Array = Any  # of numpy, whose types say nothing of shapes


@dataclass(frozen=True)
class Encoded:
    """An encoded weight.

    Attributes:
        content: int8 [x], nibbles and list.
        index: int8 [8 * tiles].
        info: int64 [5].
    """

    content: Tensor
    index: Tensor
    info: Tensor

    @property
    def num_bytes(self) -> int:
        """All three together."""
        return self.content.nbytes + self.index.nbytes + self.info.nbytes


def encode(weight_NK: Tensor) -> Encoded:
    """Encode int8 [N, K]; smaller than it is only where most integers are within -7 to 7."""
    N, K = weight_NK.shape
    values: Array = weight_NK.contiguous().view(-1).numpy()
    tiles = [values[start : start + TILE] for start in range(0, len(values), TILE)]
    nibbles, listed, index = [], [], np.empty((len(tiles), 2), "<u4")
    for number, tile in enumerate(tiles):
        is_listed = (tile > _HIGHEST) | (tile < -_HIGHEST)
        halves = np.where(is_listed, _MARK, tile + np.int8(_SHIFT)).astype(np.uint8)
        if len(halves) % 2:
            halves = np.append(halves, np.uint8(_SHIFT))
        nibbles.append(halves[0::2] | halves[1::2] << 4)
        listed.append(tile[is_listed].view(np.uint8))
        index[number] = len(listed[-1]), _checksum(nibbles[-1], listed[-1])
    content = np.concatenate([np.empty(0, np.uint8), *nibbles, *listed])
    num_listed = sum(len(piece) for piece in listed)
    return Encoded(
        torch.from_numpy(content.view(np.int8)),
        torch.from_numpy(index.view(np.int8).reshape(-1)),
        torch.tensor([TILE, num_listed, K, N, VERSION]),
    )


def decode(encoded: Encoded, name: str) -> Tensor:
    """int8 [N, K], bit for bit what was encoded.

    Args:
        name: of the weight, for errors.

    Raises:
        CheckpointError: the three tensors contradict one another, or a tile is not as it was written.
    """
    N, K, num_listed = _sizes(encoded, name)
    out = empty_pages((N, K), torch.int8)
    values: Array = out.view(-1).numpy()
    num_nibble_bytes = -(-len(values) // 2)
    content: Array = encoded.content.numpy().view(np.uint8)
    nibbles, listed = content[:num_nibble_bytes], content[num_nibble_bytes:].view(np.int8)
    index: Array = encoded.index.numpy().view("<u4").reshape(-1, 2).tolist()
    # Two integers, one in each byte; and a second such row for the bits on their way.
    pairs, moved = np.empty(TILE // 2, "<u2"), np.empty(TILE // 2, "<u2")
    listed_at = 0
    for number, (count, checksum) in enumerate(index):
        tile = values[number * TILE : (number + 1) * TILE]
        packed = nibbles[number * TILE // 2 :][: -(-len(tile) // 2)]
        pair, bits = pairs[: len(packed)], moved[: len(packed)]
        np.copyto(pair, packed)
        np.left_shift(pair, 4, out=bits)
        pair |= bits
        pair &= 0x0F0F
        np.subtract(pair.view(np.int8)[: len(tile)], _SHIFT, out=tile)
        places = np.flatnonzero(tile == _MARK - _SHIFT)
        own = listed[listed_at : listed_at + count]
        if len(places) != count or len(own) != count or _checksum(packed, own) != checksum:
            raise _damaged(name, f"tile {number} of {len(index)} is not as it was written")
        tile[places] = own
        listed_at += count
    if listed_at != num_listed:
        raise _damaged(name, f"its tiles list {listed_at} integers, its info {num_listed}")
    return out


def _sizes(encoded: Encoded, name: str) -> tuple[int, int, int]:
    """N, K and the length of the list, having checked that the tensors have the sizes that follow."""
    if encoded.info.shape != (5,):
        raise _damaged(name, f"its info has the shape {list(encoded.info.shape)}")
    tile, num_listed, K, N, version = encoded.info.tolist()
    if (tile, version) != (TILE, VERSION):
        raise CheckpointError(
            f"{name} is compressed in version {version} with tiles of {tile}; this program reads version "
            f"{VERSION} with tiles of {TILE}.",
            hint="Compress the W8A8S folder again: telechat quantize compress.",
        )
    if min(N, K, num_listed) < 0 or num_listed > N * K:
        raise _damaged(name, f"its info speaks of [{N}, {K}] and {num_listed} listed integers")
    expected = -(-N * K // 2) + num_listed, -(-N * K // TILE) * _INDEX_BYTES
    found = encoded.content.numel(), encoded.index.numel()
    if found != expected:
        raise _damaged(
            name, f"it has {found[0]} and {found[1]} bytes; {expected[0]} and {expected[1]} follow"
        )
    return N, K, num_listed


def _checksum(nibbles: Array, listed: Array) -> int:
    return zlib.crc32(listed, zlib.crc32(nibbles))


def _damaged(name: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{name} is damaged: {problem}.", hint="Copy or compress the folder again.")

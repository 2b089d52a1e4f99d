"""Low-rank adapters packed for the kernels of a `Decoder`.

A packed adapter belongs to the weights it was made for. All its matrices lie in one piece of memory, because
each alone would fill a huge page. Knows nothing of names, files or requests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from telechat.ops.cpu import library
from telechat.ops.cpu.context import Context, free_later
from telechat.ops.cpu.tensors import ELEMENT_TYPES, require
from telechat.ops.cpu.weights import FORMATS, WeightFormat

# In the order of the places of a layer in csrc/decoder.c.
Place = Literal["query", "key_value", "dense", "gate", "up", "down"]
PLACES: tuple[Place, ...] = get_args(Place)
# (layer, place) of a product; None is the head.
Product = tuple[int, Place] | None
_DTYPES: dict[WeightFormat, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ALIGNMENT = 64


class PackedAdapter:
    """What an adapter adds to the products of a decoder.

    Args:
        num_layers: of the decoder.
        matrices: product -> A [r, in] and B [out, r], floating point.
        shapes: product -> (out, in), of all that the decoder has.
        weight_format: float32 or bfloat16.

    Attributes:
        struct: what C is given, an array of tc_low_rank.
        num_bytes: memory it takes.

    Raises:
        MemoryError: there is not so much.
    """

    def __init__(
        self,
        context: Context,
        num_layers: int,
        matrices: Mapping[Product, tuple[Tensor, Tensor]],
        shapes: Mapping[Product, tuple[int, int]],
        weight_format: WeightFormat,
    ) -> None:
        self.struct = (library.LowRank * (num_layers * len(PLACES) + 1))()
        dtype = _DTYPES[weight_format]
        packed: list[tuple[library.Weight, Tensor, int]] = []
        self.num_bytes = _ALIGNMENT
        for product, pair in matrices.items():
            require(_obstacle(product, *pair, shapes))
            for matrix in pair:
                rows, columns = matrix.shape
                weight = library.Weight(format=FORMATS.index(weight_format), rows=rows, columns=columns)
                size = context.library.tc_weight_init(ctypes.byref(weight))
                packed.append((weight, matrix.detach().to("cpu", dtype).contiguous(), self.num_bytes))
                self.num_bytes += -(-size // _ALIGNMENT) * _ALIGNMENT
            place = self.struct[_index(product, num_layers)]
            place.a, place.b = (ctypes.pointer(weight) for weight, _, _ in packed[-2:])
        address = context.library.tc_huge_alloc(self.num_bytes)
        if not address:
            raise MemoryError(f"{self.num_bytes} bytes for an adapter")
        free_later(self, context.library.tc_huge_free, address, self.num_bytes)
        for weight, matrix, offset in packed:
            weight.data = address + offset
            context.library.tc_pack(
                context.handle, ctypes.byref(weight), matrix.data_ptr(), ELEMENT_TYPES[dtype]
            )


def _index(product: Product, num_layers: int) -> int:
    """Where C looks for the matrices of a product."""
    if product is None:
        return num_layers * len(PLACES)
    layer, place = product
    return layer * len(PLACES) + PLACES.index(place)


def _obstacle(
    product: Product, a: Tensor, b: Tensor, shapes: Mapping[Product, tuple[int, int]]
) -> str | None:
    """Why two matrices are no adapter of a product, or None."""
    if product not in shapes:
        return f"the decoder has no product {product}"
    rank, (width_out, width_in) = a.shape[0], shapes[product]
    if a.shape != (rank, width_in) or b.shape != (width_out, rank) or not rank:
        return f"matrices {tuple(a.shape)} and {tuple(b.shape)} for a weight {width_out} x {width_in}"
    return None

"""What every way of storing quantised weights has to say for itself.

Compressed-tensors is read in `quantized`, GPTQ in `gptq_folder`, AWQ in `awq`; which one a folder uses is
found out in `packing_choice`. All become the one form that the engine computes with, where it can hold the
same numbers: symmetric integers with a scale per group of neighbouring inputs. Inputs in another order are a
permutation beside the weight; what does not fit at all becomes a plain weight. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor

from telechat.checkpoint.gptq import Codes
from telechat.ops.int8 import DynamicWeight, StaticWeight
from telechat.ops.quantized import GROUP_SIZES, SCALE_DTYPE, OrderedWeight, QuantizedWeight, WeightScheme

SECTION = "quantization_config"
# Shape (None: any extent) and the dtypes that will do, by the name of a tensor in the parameter table.
Expected = dict[str, tuple[tuple[int | None, ...], tuple[torch.dtype, ...]]]
LoadedWeight = QuantizedWeight | OrderedWeight | StaticWeight | DynamicWeight | Tensor


class PackedFormat(Protocol):
    """A way of storing quantised weights."""

    @property
    def summary(self) -> str:
        """For people: `GPTQ, 4 bits in groups of 128`."""
        ...

    def expected(self, name: str, shape: tuple[int, ...], stored: Collection[str]) -> Expected:
        """The tensors that hold the weight called `name`; empty where it is stored as it is.

        Args:
            stored: names of all tensors of the folder, as the parameter table spells them.
        """
        ...

    def holds_bias(self, name: str, stored: Collection[str]) -> bool:
        """Whether the layer's bias is within the tensors of the weight called `name`."""
        ...

    def assemble(self, name: str, tensors: Mapping[str, Tensor]) -> LoadedWeight:
        """The weight called `name` from all its expected tensors, whose memory may be used.

        Raises:
            CheckpointError: they contradict one another.
        """
        ...


def from_codes(codes: Codes) -> LoadedWeight:
    """The engine's form of codes with zero points, if it has one that means the same.

    The difference of a code and its zero point is the integer; 4 bits hold it where it is within -8 to 7,
    8 bits within -128 to 127. Groups larger than the engine's are several with the same scale; groups whose
    inputs are not neighbours get neighbours by another order of the inputs.
    """
    groups = codes.groups_K
    order = None
    if bool((groups[1:] < groups[:-1]).any()):
        order = groups.argsort(stable=True)
        groups = groups[order]
    K = len(groups)
    fitting = [
        size
        for size in GROUP_SIZES
        if K % size == 0 and bool((groups.view(-1, size) == groups.view(-1, size)[:, :1]).all())
    ]
    integers = codes.integers()
    low, high = (int(value) for value in integers.aminmax())
    if not fitting or low < -128 or high > 127:
        return codes.dequantise()
    scheme = WeightScheme(4 if low >= -8 and high <= 7 else 8, max(fitting))
    values = integers.to(torch.int8)
    if order is not None:
        values = values[:, order]
    scales = codes.scales_GN.to(SCALE_DTYPE)[groups[:: scheme.group_size]].t()
    weight = QuantizedWeight.from_integers(values.contiguous(), scales.contiguous(), scheme)
    return weight if order is None else OrderedWeight(weight, order)

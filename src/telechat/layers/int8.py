"""Linear layers whose activations and weights are int8: with one range for all activations, or one per row.

Know how they compute; not how ranges were found.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor, nn

from telechat.ops.int8 import (
    ActivationRange,
    DynamicWeight,
    OneDnnProduct,
    StaticReference,
    StaticWeight,
    dynamic_product,
)


class StaticInt8Linear(nn.Module):
    """y = (int8(x) @ weight.T + quant_bias) * deq_scale; the layer's own bias is within quant_bias.

    Attributes:
        weight: int8 [out, in], a buffer, as are deq_scale fp32 [out] and quant_bias int32 [out].
        inputs: how activations become int8.
    """

    weight: Tensor | None
    deq_scale: Tensor
    quant_bias: Tensor

    def __init__(self, weight: StaticWeight) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.weight.shape
        self.register_buffer("weight", weight.weight)
        self.register_buffer("deq_scale", weight.deq_scale)
        self.register_buffer("quant_bias", weight.quant_bias)
        self.inputs: ActivationRange = weight.inputs

    @property
    def stored(self) -> StaticWeight:
        """Integers and constants. Gone after `release`."""
        assert self.weight is not None, "release has given the stored form up"
        return StaticWeight(self.weight, self.deq_scale, self.quant_bias, self.inputs)

    @cached_property
    def product(self) -> OneDnnProduct | StaticReference:
        """What computes, made when first needed: it may hold the weight in a layout of its own."""
        is_fast = OneDnnProduct.obstacle(self.quant_bias.device) is None
        return OneDnnProduct(self.stored) if is_fast else StaticReference(self.stored)

    def release(self) -> None:
        """Give the integers up, for who has a form of their own; the layer cannot compute any more."""
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in x's dtype."""
        return self.product(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)


class DynamicInt8Linear(nn.Module):
    """y = int8(x) @ weight.T with a scale per row of x, plus bias.

    Attributes:
        weight: int8 [out, in], a buffer, as is weight_scale fp32 [out].
        bias: in the activations' dtype, or None.
    """

    weight: Tensor | None
    weight_scale: Tensor

    def __init__(self, weight: DynamicWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.weight.shape
        self.register_buffer("weight", weight.weight)
        self.register_buffer("weight_scale", weight.scales)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def stored(self) -> DynamicWeight:
        """Integers and scales. Gone after `release`."""
        assert self.weight is not None, "release has given the stored form up"
        return DynamicWeight(self.weight, self.weight_scale.float())

    def release(self) -> None:
        """Give the integers up, for who has a form of their own; the layer cannot compute any more."""
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in x's dtype."""
        out = dynamic_product(x.reshape(-1, self.in_features), self.stored)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features)

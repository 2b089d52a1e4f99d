"""A linear layer whose weight is stored in 8 or 4 bits.

Knows how it computes; not how its weight was found, nor which layers of a model are quantised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from telechat.ops.quantized import OrderedWeight, QuantizedWeight, WeightScheme, round_to_nearest
from telechat.ops.quantized_products import Product, ReferenceProduct, choose_product


class QuantizedLinear(nn.Module):
    """y = x @ weight.T + bias with the weight in integers and scales.

    Products are computed from the stored form until `bind` chooses a faster one.

    Attributes:
        scheme: bits and group size.
        qweight, scales: buffers, see `QuantizedWeight`; None once `bind` has replaced them.
        order: int64 [in], a buffer: column j of the stored weight belongs to input order[j]; None where
            inputs stand as they are.
        bias: in the activations' dtype, or None.
        product_name: the form that computes.
    """

    qweight: Tensor | None
    scales: Tensor | None
    order: Tensor | None

    def __init__(
        self, weight: QuantizedWeight, bias: Tensor | None = None, order: Tensor | None = None
    ) -> None:
        super().__init__()
        self.scheme = weight.scheme
        self.in_features, self.out_features = weight.columns, weight.rows
        self.register_buffer("qweight", weight.qweight)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("order", order)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.product_name = ReferenceProduct.name
        self._product: Product | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear, scheme: WeightScheme) -> QuantizedLinear:
        """A layer rounded to nearest, on the same device."""
        return cls(round_to_nearest(linear.weight.detach(), scheme), linear.bias)

    @property
    def weight_bytes(self) -> int:
        """Memory of the stored integers and scales."""
        return self.stored.num_bytes

    @property
    def stored(self) -> QuantizedWeight:
        """Integers and scales, sharing memory with the buffers. Gone after `bind`."""
        assert self.qweight is not None and self.scales is not None, "bind has given the stored form up"
        return QuantizedWeight(self.scheme, self.qweight, self.scales)

    @property
    def is_bound(self) -> bool:
        """Whether `bind` has chosen the product."""
        return self._product is not None

    def release(self) -> None:
        """Give the stored form up, for who has a form of their own; the layer cannot compute any more."""
        self.qweight = self.scales = None

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in] that is meant."""
        if self.order is None:
            return self.stored.dequantise(dtype)
        return OrderedWeight(self.stored, self.order).dequantise(dtype)

    def bind(self, name: str = "auto") -> str:
        """Choose the form of the product, once; returns its name and the reason.

        A form with a layout of its own takes the place of the stored tensors: no memory is held twice, and
        the layer can be neither saved nor moved afterwards.

        Raises:
            DeviceError: a form asked for by name cannot run.
        """
        choice = choose_product(self.stored, name)
        self._product, self.product_name = choice.product, choice.name
        if getattr(choice.product, "weight", None) is None:
            self.release()
        return f"{choice.name} ({choice.reason})"

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in x's dtype."""
        product = self._product or ReferenceProduct(self.stored)
        rows = x.reshape(-1, self.in_features)
        out = product(rows if self.order is None else rows.index_select(1, self.order))
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Moving the layer moves the scales; changing the model's dtype leaves them exact."""
        assert self._product is None, "a layer whose product is chosen cannot be moved"
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scales is not None and self.scales is not None and self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        return self

    def extra_repr(self) -> str:
        """Shape and scheme."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.scheme.bits}, "
            f"group_size={self.scheme.group_size}, bias={self.bias is not None}"
        )


def bind_products(model: nn.Module) -> dict[str, int]:
    """Choose the products of every quantised layer of a model; returns how many took which form and why."""
    counts: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, QuantizedLinear) and not module.is_bound:
            chosen = module.bind()
            counts[chosen] = counts.get(chosen, 0) + 1
    return counts


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one with this dotted name, or of none where there was none."""
    owner, _, leaf = name.rpartition(".")
    parent: Any = model.get_submodule(owner)
    setattr(parent, leaf, module)

"""Linear layers that read the same input, joined into one product.

The joined weight takes the place of the single ones, which become views of it: nothing is held twice and the
modules stay usable. Knows nothing of what the products are for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from telechat.layers.quantized import QuantizedLinear
from telechat.ops.fused import FusedKernels, Projection
from telechat.ops.quantized import QuantizedWeight


@torch.no_grad()
def fuse(modules: Sequence[nn.Module], kernels: FusedKernels, *, gated: bool = False) -> Projection:
    """The product [M, K] -> [M, sum of N] of linear layers, `nn.Linear` or `QuantizedLinear`.

    Args:
        gated: of two modules, the first is the gate of the second: silu(first) * second, [M, N].
    """
    if all(type(module) is nn.Linear for module in modules):
        return _fuse_plain([module for module in modules if isinstance(module, nn.Linear)], kernels, gated)
    quantised = [module for module in modules if isinstance(module, QuantizedLinear)]
    if len(quantised) == len(modules) and len({module.scheme for module in quantised}) == 1:
        return _fuse_quantised(quantised, kernels, gated)
    # Weights of different kinds.
    parts = [fuse([module], kernels) for module in modules]
    assert len(parts) > 1, f"a projection is a {type(modules[0]).__name__}"
    if gated:
        return lambda x: kernels.swiglu(*(part(x) for part in parts))
    return lambda x: torch.cat([part(x) for part in parts], dim=1)


def _fuse_plain(modules: list[nn.Linear], kernels: FusedKernels, gated: bool) -> Projection:
    weight: Tensor = modules[0].weight
    if len(modules) > 1:
        weight = torch.cat([module.weight for module in modules])
        start = 0
        for module in modules:
            view = weight[start : start + module.out_features]
            module.weight = nn.Parameter(view, requires_grad=False)
            start += module.out_features
    return kernels.bind_linear(weight.detach(), _joined_bias(modules), gated=gated)


def _fuse_quantised(modules: list[QuantizedLinear], kernels: FusedKernels, gated: bool) -> Projection:
    stored = modules[0].stored
    if len(modules) > 1:
        parts = [module.stored for module in modules]
        qweight = torch.cat([part.qweight for part in parts])
        scales = torch.cat([part.scales for part in parts])
        stored = QuantizedWeight(modules[0].scheme, qweight, scales)
        start = 0
        for module in modules:
            view = stored.take_rows(start, start + module.out_features)
            module.qweight, module.scales = view.qweight, view.scales
            start += module.out_features
    return kernels.bind_quantized(stored, _joined_bias(modules), gated=gated)


def _joined_bias(modules: Sequence[nn.Linear | QuantizedLinear]) -> Tensor | None:
    """Their biases one after the other, zero where one has none; None where none has one."""
    biases = [module.bias for module in modules]
    given = [bias for bias in biases if bias is not None]
    if not given:
        return None
    if len(biases) == 1:
        return biases[0]
    return torch.cat(
        [
            given[0].new_zeros(module.out_features) if bias is None else bias
            for module, bias in zip(modules, biases, strict=True)
        ]
    )

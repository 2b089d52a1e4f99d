"""Low-rank updates of linear layers: LoRA, rsLoRA and DoRA, attached to a layer from outside.

The layer keeps its class, its name and its frozen weight, in floats or in integers (QLoRA); its output is
changed by a forward hook. Knows one layer; not which layers of a model are changed, nor files.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from telechat.layers.quantized import QuantizedLinear

UPDATE = "lora"
"""Name of the update within its layer."""


class LowRankUpdate(nn.Module):
    """Turns a layer's W x + bias into (W + scale * b @ a) x + bias.

    With DoRA each row of that sum is scaled to a trained length. The row's present length counts as a
    constant in the backward pass, as in the paper and in peft.

    Args:
        layer: what is changed; starts unchanged, because `b` starts at 0.
        rank: of the update.
        scale: factor of b @ a.
        dropout: share of the inputs of `a` that is dropped in training.
        uses_dora: train the lengths of the rows as well.
        dtype: of the trained matrices.
        generator: of the start values, on the layer's device.

    Attributes:
        a: [rank, in], uniform in +-1 / sqrt(in), peft's start.
        b: [out, rank].
        magnitude: [out], with DoRA only.
    """

    def __init__(
        self,
        layer: nn.Linear | QuantizedLinear,
        *,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        uses_dora: bool = False,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = dropout
        weight = frozen_weight(layer)
        self.a = nn.Parameter(torch.empty(rank, layer.in_features, dtype=dtype, device=weight.device))
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank, dtype=dtype, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5), generator=generator)
        self.magnitude = nn.Parameter(weight.float().norm(dim=1).to(dtype)) if uses_dora else None

    def change(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """As torch calls a forward hook: output [..., out] of inputs ([..., in],) -> [..., out]."""
        assert isinstance(layer, nn.Linear | QuantizedLinear)
        x = F.dropout(inputs[0], self.dropout, self.training)
        delta = F.linear(F.linear(x, self.a), self.b) * self.scale
        if self.magnitude is None:
            return output + delta.to(output.dtype)
        ratio = (self.magnitude / self._row_lengths(layer)).to(output.dtype)
        if layer.bias is None:
            return ratio * (output + delta.to(output.dtype))
        bias = layer.bias.to(output.dtype)
        return ratio * (output - bias + delta.to(output.dtype)) + bias

    @torch.no_grad()
    def _row_lengths(self, layer: nn.Linear | QuantizedLinear) -> Tensor:
        """Lengths of the rows of the changed weight, fp32 [out]."""
        with torch.autocast(self.b.device.type, enabled=False):
            changed = frozen_weight(layer).float() + self.scale * (self.b.float() @ self.a.float())
        lengths: Tensor = torch.linalg.vector_norm(changed, dim=1)
        return lengths

    def extra_repr(self) -> str:
        """Rank, scale and kind."""
        return f"rank={len(self.a)}, scale={self.scale:g}, dora={self.magnitude is not None}"


def frozen_weight(layer: nn.Linear | QuantizedLinear) -> Tensor:
    """The weight [out, in] that a layer means, without gradient."""
    return layer.dequantise() if isinstance(layer, QuantizedLinear) else layer.weight.detach()


def attach(layer: nn.Linear | QuantizedLinear, update: LowRankUpdate) -> None:
    """Let `update` change the layer's output; its parameters become the layer's, under `lora`."""
    layer.add_module(UPDATE, update)
    layer.register_forward_hook(update.change)

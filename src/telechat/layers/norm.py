"""Root-mean-square layer normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = weight * round(x / sqrt(mean(x^2) + eps)): normalised in fp32, rounded to x's dtype, then scaled.

    The order of rounding and scaling is that of the official code.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of `x` [..., width]."""
        x32 = x.float()
        normalised = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return normalised.to(x.dtype) * self.weight

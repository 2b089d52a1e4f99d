"""The grid that a group of weights is rounded to: its scale and zero point.

weight = scale * (code - zero), codes from 0 to 2^bits - 1. The plain grid spans the group's weights; the
search also tries narrower ones, which clip the largest weights and are finer for all others, and keeps the
one with the least weighted square error. Knows nothing of layers or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from telechat.errors import ConfigError

# How much narrower than the weights a grid may be: few bits gain much from clipping, eight next to nothing.
_NARROWEST = {2: 0.3, 4: 0.5, 8: 0.9}
_NUM_WIDTHS = {2: 29, 4: 26, 8: 6}
# Below this fp16 holds no number but 0.
_LEAST_SCALE = 2.0**-24
# Weights tried at a time: the intermediates stay in the second-level cache of a core.
_TRIED_AT_ONCE = 2**17


@dataclass(frozen=True)
class GridRule:
    """How grids are chosen.

    Attributes:
        bits: 2, 4 or 8.
        sym: the zero point is the middle code. Scales may then be negative: there is one code more below the
            middle than above, and a group may need it on either side.
        search: try narrower grids.
        least_zero: of an asymmetric grid; files of the first format cannot store 0.
    """

    bits: int
    sym: bool
    search: bool = True
    least_zero: int = 1

    @property
    def highest_code(self) -> int:
        """2^bits - 1."""
        return int(2**self.bits - 1)

    def choose(self, weight_Ng: Tensor, importance_g: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each row.

        Args:
            weight_Ng: fp32, N groups of g weights.
            importance_g: fp32, what a square error costs at each place; equal when None.

        Returns:
            fp32 [N] scales that fp16 holds exactly, and fp32 [N] zero points, whole numbers.

        Raises:
            ConfigError: weights so large that fp16 cannot hold a scale.
        """
        N, g = weight_Ng.shape
        scales, zeros = torch.empty(N), torch.empty(N)
        step = max(1, _TRIED_AT_ONCE // g)
        for start in range(0, N, step):
            rows = slice(start, start + step)
            scales[rows], zeros[rows] = self._choose_some(weight_Ng[rows], importance_g)
        if not bool(scales.isfinite().all()):
            raise ConfigError(
                f"The weights reach {float(weight_Ng.abs().max()):g}, and fp16 cannot hold their scale."
            )
        return scales, zeros

    def quantise(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Codes, as whole floats, of weights of any shape that scale and zero go with."""
        return (weight / scale).round_().add_(zero).clamp_(0, self.highest_code)

    def _choose_some(self, weight_Ng: Tensor, importance_g: Tensor | None) -> tuple[Tensor, Tensor]:
        low, high = weight_Ng.amin(1).clamp(max=0), weight_Ng.amax(1).clamp(min=0)
        is_empty = (low == 0) & (high == 0)
        low, high = torch.where(is_empty, -1.0, low), torch.where(is_empty, 1.0, high)
        least = torch.full_like(low, float("inf"))
        best_scale, best_zero = torch.zeros_like(low), torch.zeros_like(low)
        for scale, zero in self._candidates(low, high):
            error = self.quantise(weight_Ng, scale[:, None], zero[:, None])
            error.sub_(zero[:, None]).mul_(scale[:, None]).sub_(weight_Ng).square_()
            cost = error.sum(1) if importance_g is None else error @ importance_g
            # Not a number where the scale is infinite: the first one is kept, and refused by `choose`.
            is_better = (cost < least) | (best_scale == 0)
            least = torch.where(is_better, cost, least)
            best_scale = torch.where(is_better, scale, best_scale)
            best_zero = torch.where(is_better, zero, best_zero)
        return best_scale, best_zero

    def _candidates(self, low: Tensor, high: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(scale, zero), the grid that spans all weights first."""
        widths = [1.0]
        if self.search:
            widths = torch.linspace(1.0, _NARROWEST[self.bits], _NUM_WIDTHS[self.bits]).tolist()
        found = []
        for width in widths:
            if not self.sym:
                scale = _in_fp16((high - low) * width / self.highest_code)
                zero = (-low * width / scale).round_().clamp_(self.least_zero, self.highest_code)
                found.append((scale, zero))
                continue
            scale = _in_fp16(torch.maximum(-low, high) * 2 * width / self.highest_code)
            zero = torch.full_like(scale, 2 ** (self.bits - 1))
            found.append((scale, zero))
            if self.search:
                found.append((-scale, zero))
        return found


def _in_fp16(scale: Tensor) -> Tensor:
    return scale.clamp(min=_LEAST_SCALE).half().float()

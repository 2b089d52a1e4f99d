"""What ranges a layer's inputs keep to: by their extremes, or by a histogram whose ends are worth cutting.

Shapes: K inputs. Knows nothing of layers or files.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from telechat.errors import ConfigError

ActMethod = Literal["min-max", "histogram", "auto"]
# As the official tool numbers them.
ACT_METHODS: dict[int, ActMethod] = {1: "min-max", 2: "histogram", 3: "auto"}
_BINS = 2048
_STEP = 1e-5
_LEVELS = 255
# `auto` takes the histogram where no input stands out more than this.
_OUTSTANDING = 50.0


class Observer:
    """Extremes, spread and histogram of a layer's inputs, taken in batch by batch.

    Attributes:
        low, high: extremes so far.
        largest_K: fp32 [K], the largest magnitude of each input.
        num_values: how many were seen.
    """

    def __init__(self, num_inputs: int) -> None:
        self.low, self.high = 0.0, 0.0
        self.largest_K = torch.zeros(num_inputs)
        self._counts = torch.zeros(_BINS, dtype=torch.float64)
        self._range = (0.0, 0.0)
        self.num_values = 0
        self._sum = self._squares = 0.0

    def add(self, inputs: Tensor) -> None:
        """Take inputs [..., K] in.

        Raises:
            ConfigError: they hold numbers that are not finite.
        """
        x_TK = inputs.reshape(-1, inputs.shape[-1]).float()
        low, high = (float(value) for value in x_TK.aminmax())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise ConfigError("The calibration inputs of a layer are not finite.")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.largest_K = torch.maximum(self.largest_K, x_TK.abs().amax(0))
        self.num_values += x_TK.numel()
        self._sum += float(x_TK.sum(dtype=torch.float64))
        self._squares += float(x_TK.square().sum(dtype=torch.float64))
        self._widen()
        self._counts += torch.histc(x_TK, _BINS, *self._range).double()

    def _widen(self) -> None:
        """Give the histogram the present range; counts move to the bins that their centres fall into."""
        low, high = self.low, max(self.high, self.low + 1e-12)
        if (low, high) == self._range:
            return
        old_low, old_high = self._range
        centres = old_low + (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (old_high - old_low) / _BINS
        places = ((centres - low) / (high - low) * _BINS).long().clamp(0, _BINS - 1)
        self._counts = torch.zeros_like(self._counts).index_add_(0, places, self._counts)
        self._range = (low, high)

    @property
    def score(self) -> float:
        """Largest magnitude over standard deviation: how far the worst inputs stand out."""
        if not self.num_values:
            return 0.0
        mean = self._sum / self.num_values
        deviation = max(self._squares / self.num_values - mean * mean, 0.0) ** 0.5
        return max(-self.low, self.high) / deviation if deviation else 0.0

    def range(self, method: ActMethod) -> tuple[float, float]:
        """The range to be kept."""
        if method == "auto":
            method = "histogram" if self.score <= _OUTSTANDING else "min-max"
        return (self.low, self.high) if method == "min-max" else self._cut_range()

    def _cut_range(self) -> tuple[float, float]:
        """Both ends moved inwards by small shares of the values, as long as the square error falls."""
        low, high = self._range
        total = float(self._counts.sum())
        if not total:
            return self.low, self.high
        cumulated = (self._counts.cumsum(0) / total).tolist()
        width = (high - low) / _BINS
        best, best_error = (self.low, self.high), self._error(self.low, self.high)
        first, last = 0, _BINS - 1
        share_low, share_high = 0.0, 1.0
        while share_low < share_high:
            left = bisect_left(cumulated, share_low + _STEP)
            right = min(bisect_left(cumulated, share_high - _STEP), last)
            moved = left - first, last - right
            if moved[0] > moved[1]:
                share_low, first = share_low + _STEP, left
            else:
                share_high, last = share_high - _STEP, right
            if last <= first:
                break
            if moved == (0, 0):
                continue
            ends = low + first * width, low + (last + 1) * width
            error = self._error(*ends)
            if error > best_error:
                break
            best, best_error = ends, error
        return best

    def _error(self, low: float, high: float) -> float:
        """Square error of all values, each at the centre of its bin, when `low` to `high` is kept."""
        start, stop = self._range
        centres = start + (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (stop - start) / _BINS
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / _LEVELS or 1.0
        offset = round(-low / scale)
        rounded = ((centres / scale + offset).round().clamp(0, _LEVELS) - offset) * scale
        return float(((rounded - centres).square() * self._counts).sum())


@dataclass(frozen=True)
class DisableLevel:
    """`L0`, `L1`, ...: so many of the layers whose inputs stand out most stay in floats."""

    count: int

    @classmethod
    def parse(cls, text: str) -> DisableLevel:
        """Read `L0`, `L5`.

        Raises:
            ConfigError: anything else.
        """
        digits = text.removeprefix("L")
        if not text.startswith("L") or not digits.isdecimal() or (digits[0] == "0" and digits != "0"):
            raise ConfigError(f"disable_level is {text!r}; it must be L0, L1, L2 and so on.")
        return cls(int(digits))

    def worst(self, scores: dict[str, float]) -> list[str]:
        """The names of the highest scores."""
        return sorted(scores, key=lambda name: -scores[name])[: self.count]

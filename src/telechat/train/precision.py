"""Number formats of a run: what weights are kept in, what products are computed in, and fp16's loss scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from telechat.train.config import PrecisionName


@dataclass(frozen=True)
class Precision:
    """Formats of a run.

    Attributes:
        weights: dtype of the trained weights and their gradients.
        compute: dtype of matrix products.
    """

    weights: torch.dtype
    compute: torch.dtype

    @property
    def autocasts(self) -> bool:
        """Products are computed in a format that the weights are not kept in."""
        return self.weights != self.compute


PRECISIONS: dict[PrecisionName, Precision] = {
    "fp32": Precision(torch.float32, torch.float32),
    "bf16": Precision(torch.float32, torch.bfloat16),
    "bf16-pure": Precision(torch.bfloat16, torch.bfloat16),
    "fp16": Precision(torch.float32, torch.float16),
}

# The documented runs' values: first scale, steps without overflow before it doubles, lowest scale.
_FIRST_SCALE = 2.0**12
_GROWTH_STEPS = 500


class LossScale:
    """Dynamic loss scale for fp16: small gradients are lifted above its smallest number.

    Off for every other format, where the scale is 1 and stays 1.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = _FIRST_SCALE if enabled else 1.0
        self.good_steps = 0

    def update(self, *, overflowed: bool) -> None:
        """Halve after an overflow; double after 500 steps without."""
        if not self.enabled:
            return
        self.good_steps = 0 if overflowed else self.good_steps + 1
        if overflowed:
            self.scale = max(1.0, self.scale / 2)
        elif self.good_steps == _GROWTH_STEPS:
            self.scale, self.good_steps = self.scale * 2, 0

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])

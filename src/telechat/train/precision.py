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

# The documented runs' values for fp16's loss scale: the first one as a power of two, the lowest, the steps
# without overflow before it doubles, and which overflow since the last doubling is the first to halve it.
FIRST_SCALE_POWER = 12
LEAST_SCALE = 1.0
GROWTH_STEPS = 500
HYSTERESIS = 2


class LossScale:
    """Dynamic loss scale for fp16: small gradients are lifted above its smallest number.

    Off for every other format, where the scale is 1 and stays 1.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = 2.0**FIRST_SCALE_POWER if enabled else 1.0
        self.good_steps = 0
        self.overflows_left = HYSTERESIS

    def update(self, *, overflowed: bool) -> None:
        """Halve from the second overflow on; after 500 steps without any, double and begin to count anew."""
        if not self.enabled:
            return
        self.good_steps = 0 if overflowed else self.good_steps + 1
        if overflowed and self.overflows_left > 1:
            self.overflows_left -= 1
        elif overflowed:
            self.scale = max(LEAST_SCALE, self.scale / 2)
        elif self.good_steps == GROWTH_STEPS:
            self.scale, self.good_steps, self.overflows_left = self.scale * 2, 0, HYSTERESIS

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"scale": self.scale, "good_steps": self.good_steps, "overflows_left": self.overflows_left}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
        # Checkpoints of earlier versions do not say.
        self.overflows_left = int(state.get("overflows_left", HYSTERESIS))

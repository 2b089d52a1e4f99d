"""Settings of learning from preferences, the section `preference` of a recipe. Reads without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from telechat.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PreferenceSection:
    """Learning from pairs of a better and a worse answer, or from answers judged good or bad.

    Attributes:
        loss: `dpo`, `orpo` or `simpo` on pairs; `kto` on judged answers. DPO and KTO compare with the weights
            that the run starts from.
        beta: strength, by the loss's own meaning; null means 0.1, and 2 for `simpo`.
        gamma: margin of `simpo`; null means 1.
        desirable_weight, undesirable_weight: of good and of bad answers in `kto`; null means 1.
    """

    loss: Literal["dpo", "orpo", "simpo", "kto"] = "dpo"
    beta: float | None = None
    gamma: float | None = None
    desirable_weight: float | None = None
    undesirable_weight: float | None = None

    def __post_init__(self) -> None:
        for name, loss in (("gamma", "simpo"), ("desirable_weight", "kto"), ("undesirable_weight", "kto")):
            if getattr(self, name) is not None and self.loss != loss:
                raise ConfigError(f"preference.{name} belongs to the loss {loss}; the loss is {self.loss}.")
        if not 0 < self.strength < math.inf:
            raise ConfigError(f"preference.beta is {self.beta}; it must be positive.")
        if not 0 <= min(self.weights) <= max(self.weights) < math.inf:
            raise ConfigError(
                f"preference.desirable_weight and undesirable_weight are {self.weights}; they must not be "
                "negative."
            )

    @property
    def strength(self) -> float:
        """`beta`, or its default."""
        return self.beta if self.beta is not None else (2.0 if self.loss == "simpo" else 0.1)

    @property
    def margin(self) -> float:
        """`gamma`, or its default."""
        return self.gamma if self.gamma is not None else 1.0

    @property
    def weights(self) -> tuple[float, float]:
        """Of good and of bad answers."""
        good, bad = self.desirable_weight, self.undesirable_weight
        return (1.0 if good is None else good, 1.0 if bad is None else bad)

    @property
    def is_paired(self) -> bool:
        """Rows are pairs."""
        return self.loss != "kto"

    @property
    def needs_reference(self) -> bool:
        """The loss compares with the start weights."""
        return self.loss in ("dpo", "kto")

"""What a quantisation is to do. Knows the methods by name only."""

from __future__ import annotations

from dataclasses import dataclass

from telechat.errors import ConfigError
from telechat.ops.quantized import DEFAULT_GROUP_SIZE, WeightScheme
from telechat.registry import Registry

# A method makes a `RoundParameter` out of a scheme.
METHODS = Registry("quantisation method", {"rtn": "telechat.quant.rtn:round_nearest"})


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """How a model is quantised.

    Attributes:
        method: `rtn`, round to nearest: needs no calibration.
        bits: 4 or 8.
        group_size: inputs that share a scale: 32, 64 or 128.
    """

    method: str = "rtn"
    bits: int = 4
    group_size: int = DEFAULT_GROUP_SIZE

    def __post_init__(self) -> None:
        if self.method not in METHODS.names():
            raise ConfigError(
                f"Unknown quantisation method {self.method!r}.", hint=f"Known: {', '.join(METHODS.names())}."
            )
        # Checks both.
        WeightScheme(self.bits, self.group_size)

    @property
    def scheme(self) -> WeightScheme:
        """Bits and group size."""
        return WeightScheme(self.bits, self.group_size)

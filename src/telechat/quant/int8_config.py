"""How a model becomes int8 in weights and activations. Knows names and limits only."""

from __future__ import annotations

from dataclasses import dataclass

from telechat.errors import ConfigError
from telechat.quant.observers import ACT_METHODS, ActMethod, DisableLevel
from telechat.quant.smoothing import check_anti_method


@dataclass(frozen=True, kw_only=True)
class Int8Config:
    """W8A8 as the Ascend tool makes it.

    `mlp.down_proj`, whose inputs have the worst outliers, and the head always stay in floats.

    Attributes:
        anti_method: how outliers are moved into the weights: m1, m2, m3, m5, m6, or empty for not at all.
        act_method: ranges of activations: 1 extremes, 2 histogram, 3 whichever suits the layer.
        disable_level: `L0`, `L1`, ...: so many more layers stay in floats, those whose inputs stand out
            most.
        disable_names: layers that stay in floats.
        is_dynamic: a scale for each row of activations, found at run time; no ranges are stored.
        fraction: sparse weights (W8A8S): this share of each matrix, its largest weights, uses all 8 bits, the
            others are within -8 to 7. 0.01 to 0.1 is useful; None: not sparse.
        part_file_size: gigabytes of a weight file; None for one file.
    """

    anti_method: str = ""
    act_method: int = 1
    disable_level: str = "L0"
    disable_names: tuple[str, ...] = ()
    is_dynamic: bool = False
    fraction: float | None = None
    part_file_size: float | None = None

    def __post_init__(self) -> None:
        check_anti_method(self.anti_method)
        DisableLevel.parse(self.disable_level)
        if self.act_method not in ACT_METHODS:
            raise ConfigError(f"act_method is {self.act_method}; it must be 1, 2 or 3.")
        if self.fraction is not None:
            if not 0 < self.fraction < 1:
                raise ConfigError(
                    f"fraction is {self.fraction}; it must be between 0 and 1, best 0.01 to 0.1."
                )
            if self.is_dynamic:
                raise ConfigError("Sparse weights have static activations.", hint="Leave is_dynamic out.")
            if self.ranges == "auto":
                raise ConfigError("act_method is 3; sparse weights allow 1 and 2.")
        if self.part_file_size is not None and not self.part_file_size > 0:
            raise ConfigError(f"part_file_size is {self.part_file_size}; it must be positive.")

    @property
    def ranges(self) -> ActMethod:
        """How ranges are found, by name."""
        return ACT_METHODS[self.act_method]

"""What a quantisation is to do. Knows the methods by name only."""

from __future__ import annotations

from dataclasses import dataclass

from telechat.checkpoint.gptq import V1, check_bits, check_checkpoint_format
from telechat.errors import ConfigError
from telechat.ops.quantized import DEFAULT_GROUP_SIZE, GROUP_SIZES, WeightScheme

METHODS = ("rtn", "gptq")
LAYOUTS = ("telechat", "llama")
_DEFAULT_GROUPS = {"rtn": DEFAULT_GROUP_SIZE, "gptq": 128}
# What only GPTQ obeys, with the value that asks for nothing.
_GPTQ_ONLY = {
    "desc_act": False,
    "sym": True,
    "damp_percent": 0.01,
    "static_groups": True,
    "true_sequential": True,
    "checkpoint_format": V1,
    "bits_for": (),
    "average_bits": None,
    "layout": "telechat",
}


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """How a model is quantised.

    Attributes:
        method: `rtn`, round to nearest, needs no calibration; `gptq` does, and is closer to the model.
        bits: rtn: 4 or 8. gptq: 2, 4 or 8.
        group_size: inputs that share a scale. rtn: 32 (the default), 64 or 128. gptq: any that divides the
            layers, or -1 for one scale per output; 128 by default.
        desc_act: gptq: round the inputs that matter most first.
        sym: gptq: without zero points.
        damp_percent: gptq: share of the mean of the Hessian's diagonal that is added to it.
        static_groups: gptq with `desc_act`: groups stay neighbours, which the fast kernels need.
        true_sequential: gptq: each layer of a block sees what the quantised ones before it give.
        checkpoint_format: gptq: `gptq` or `gptq_v2`: how zero points are stored.
        bits_for: gptq: (pattern, bits) of layers that get other bits, as `("*.down_proj", 8)`; the first
            pattern that matches counts.
        average_bits: gptq: give the layers that lose most more bits than `bits`, as long as the average over
            all weights stays at most this.
        layout: gptq: `telechat`, official names and GPTQ's tensors; or `llama`, which vLLM runs: Llama's
            names, keys and values apart, compressed-tensors.
    """

    method: str = "rtn"
    bits: int = 4
    group_size: int | None = None
    desc_act: bool = False
    sym: bool = True
    damp_percent: float = 0.01
    static_groups: bool = True
    true_sequential: bool = True
    checkpoint_format: str = V1
    bits_for: tuple[tuple[str, int], ...] = ()
    average_bits: float | None = None
    layout: str = "telechat"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"Unknown quantisation method {self.method!r}.", hint=f"Known: {', '.join(METHODS)}."
            )
        if self.method == "rtn":
            self._check_rtn()
        else:
            self._check_gptq()

    def _check_rtn(self) -> None:
        WeightScheme(self.bits, self.groups)
        for name, value in _GPTQ_ONLY.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, which rounding to nearest does not obey.",
                    hint="Choose the method gptq.",
                )

    def _check_gptq(self) -> None:
        for bits in (self.bits, *(bits for _, bits in self.bits_for)):
            check_bits(bits)
        check_checkpoint_format(self.checkpoint_format)
        if self.groups == 0 or self.groups < -1:
            raise ConfigError(f"group_size is {self.groups}; it must be positive, or -1 for one per output.")
        if not 0 < self.damp_percent < 1:
            raise ConfigError(f"damp_percent is {self.damp_percent}; it must be between 0 and 1.")
        if self.layout not in LAYOUTS:
            raise ConfigError(f"layout is {self.layout!r}; it must be {' or '.join(LAYOUTS)}.")
        self._check_layout()
        if self.average_bits is None:
            return
        if not self.bits <= self.average_bits <= 8:
            raise ConfigError(
                f"average_bits is {self.average_bits}; it must be from {self.bits} (bits) to 8."
            )
        if self.bits_for:
            raise ConfigError(
                "bits_for and average_bits both say which layers get more bits.", hint="Give one of them."
            )

    def _check_layout(self) -> None:
        """Llama's layout holds symmetric integers of one width in neighbouring groups."""
        if self.layout == LAYOUTS[0]:
            return
        problem = None
        if self.bits == 2 or self.bits_for or self.average_bits is not None:
            problem = "all layers have 4 or 8 bits"
        elif not self.sym:
            problem = "weights are symmetric"
        elif self.desc_act and not self.static_groups:
            problem = "groups are static"
        elif self.groups not in GROUP_SIZES:
            problem = f"the group size is {', '.join(map(str, GROUP_SIZES))}"
        if problem:
            raise ConfigError(f"The layout {self.layout} can be written only where {problem}.")

    @property
    def groups(self) -> int:
        """The group size, or the method's default."""
        return _DEFAULT_GROUPS[self.method] if self.group_size is None else self.group_size

    @property
    def scheme(self) -> WeightScheme:
        """Bits and group size, for rounding to nearest."""
        return WeightScheme(self.bits, self.groups)

"""How a training run is spread over processes: the `parallel` section of a recipe, and a rank's place in it.

Integers only: `telechat plan` reads it as well, without torch. Knows no model and no process.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from telechat.errors import ConfigError

# Outermost first: ranks that talk most, those of one tensor, are neighbours and so on one machine.
AXES = ("pp", "ep", "dp", "cp", "tp")
AxisName = Literal["pp", "ep", "dp", "cp", "tp"]


@dataclass(frozen=True, kw_only=True)
class ParallelLayout:
    """How many processes share what; the product of the axes is the number of processes.

    Attributes:
        dp: groups of processes that each take other batches; none takes what the other axes leave.
        tp: processes that share every layer, and the sequence between layers.
        pp: processes that each hold some of the layers.
        cp: processes that share every sequence.
        ep: processes that share a mixture's experts; each takes other batches, as with dp.
        engine: `torch`, or `deepspeed` for dp alone (needs the extra `deepspeed`).
        zero_stage: what the processes of dp, ep and cp divide: 0 nothing, 1 the optimiser's state, 2 also
            gradients, 3 also weights.
        offload: keep weights, gradients and the optimiser's state in the host's memory between uses.
        context: how cp shares attention: `ring` sends keys and values round, `heads` exchanges heads.
        pp_interleave: stages on each process of pp.
        pp_offset: layers more or fewer than an equal share, for each process of pp; with `pp_interleave`, a
            list of such lists, one for each stage of a process. Empty for equal shares.
        deepspeed: further keys of DeepSpeed's configuration, over ours.
    """

    dp: int | None = None
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    engine: Literal["torch", "deepspeed"] = "torch"
    zero_stage: Literal[0, 1, 2, 3] = 3
    offload: bool = False
    context: Literal["ring", "heads"] = "ring"
    pp_interleave: int = 1
    pp_offset: tuple[int | tuple[int, ...], ...] = ()
    deepspeed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*AXES, "pp_interleave"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"parallel.{name} is {value}; it must be at least 1.")
        if self.pp_interleave > 1 and self.pp == 1:
            raise ConfigError(
                f"parallel.pp_interleave is {self.pp_interleave}, but parallel.pp is 1: there are no stages.",
                hint="Set parallel.pp, or leave pp_interleave out.",
            )
        if self.offload and self.zero_stage == 0:
            raise ConfigError(
                "parallel.offload is set, but parallel.zero_stage is 0, which keeps everything in place.",
                hint="Set parallel.zero_stage to 1, 2 or 3.",
            )
        if self.engine == "deepspeed" and self.num_model_ranks * self.ep > 1:
            axes = ", ".join(f"{name} {getattr(self, name)}" for name in ("tp", "pp", "cp", "ep"))
            raise ConfigError(
                f"parallel.engine deepspeed spreads data only, but the layout has {axes}.",
                hint="Use parallel.engine torch for these axes.",
            )
        if self.deepspeed and self.engine != "deepspeed":
            raise ConfigError(
                "parallel.deepspeed has keys, but parallel.engine is torch.",
                hint="Set parallel.engine to deepspeed, or leave the keys out.",
            )

    @property
    def num_model_ranks(self) -> int:
        """Processes that work on one batch together."""
        return self.tp * self.pp * self.cp

    def for_world(self, world_size: int) -> ParallelLayout:
        """This layout with `dp` filled in for a number of processes.

        Raises:
            ConfigError: the axes do not multiply to it; names them all.
        """
        others = self.num_model_ranks * self.ep
        dp = world_size // others if self.dp is None else self.dp
        if dp * others != world_size or dp < 1:
            shown = " x ".join(f"{name} {getattr(self, name)}" for name in ("tp", "pp", "cp", "ep"))
            product = others if self.dp is None else self.dp * others
            shown = shown if self.dp is None else f"dp {self.dp} x {shown}"
            relation = "which does not divide" if self.dp is None else "but there are"
            raise ConfigError(
                f"parallel: {shown} is {product}, {relation} {world_size} processes.",
                hint="Change the axes, or start as many processes: telechat launch --nproc-per-node N.",
            )
        return replace(self, dp=dp)

    @property
    def sizes(self) -> dict[AxisName, int]:
        """Extent of each axis, in the order of `AXES`; only of a layout that `for_world` returned."""
        assert self.dp is not None
        return {"pp": self.pp, "ep": self.ep, "dp": self.dp, "cp": self.cp, "tp": self.tp}

    @property
    def world_size(self) -> int:
        """Number of processes."""
        assert self.dp is not None
        return self.num_model_ranks * self.ep * self.dp

    def place(self, rank: int) -> Place:
        """Where a rank stands on every axis."""
        indices: dict[str, int] = {}
        for axis, size in reversed(self.sizes.items()):
            rank, indices[axis] = divmod(rank, size)
        return Place(**indices)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A rank's index on every axis."""

    pp: int
    ep: int
    dp: int
    cp: int
    tp: int

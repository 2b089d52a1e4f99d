"""What a memory plan is asked for, and what it answers. Knows no arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from telechat.errors import ConfigError
from telechat.models.config import TeleChatConfig
from telechat.train.config import LoraSection, PrecisionName
from telechat.train.distributed.layout import ParallelLayout

Task = Literal["pretrain", "sft", "lora", "generate"]
Program = Literal["telechat", "original"]
RowName = Literal[
    "weights", "gradients", "optimiser", "activations", "cache", "logits", "checkpoint", "program"
]
ROW_NAMES: tuple[RowName, ...] = (
    "weights",
    "gradients",
    "optimiser",
    "activations",
    "cache",
    "logits",
    "checkpoint",
    "program",
)


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """One run to plan.

    Attributes:
        config: the model.
        task: `pretrain` and `sft` train all weights, `lora` an adapter; `generate` answers.
        length: tokens of a row; for `generate`, of prompt and answer.
        layout: complete, see `ParallelLayout.for_world`; `generate` reads its `tp` and `ep`.
        rows: rows of a micro batch, or answers at once.
        micro_batches: micro batches of a step for each data-parallel rank.
        learnt_share: share of a batch's tokens whose successor is learnt.
        packed: rows hold several conversations, which costs a mask.
        precision: as in a recipe; `generate` computes in bf16 unless this is fp32.
        attention: `fused` never holds the scores of a layer, `reference` does.
        recompute: as in a recipe.
        optimizer: as in a recipe.
        lora: the adapter, for the task `lora`.
        weight_bits: bits of a number of the linear layers where they are rounded; None leaves them.
        program: `telechat`, or the original trainer under DeepSpeed: fp16 weights, whole logits.
        on_accelerator: buffers have the sizes that they have there.
        returns_freed_memory: nothing that is freed stays in the process, as on an accelerator.
        program_bytes: what the process holds beside tensors.
    """

    config: TeleChatConfig
    task: Task
    length: int
    layout: ParallelLayout
    rows: int = 1
    micro_batches: int = 1
    learnt_share: float = 1.0
    packed: bool = False
    precision: PrecisionName = "bf16"
    attention: Literal["fused", "reference"] = "fused"
    recompute: Literal["none", "selective", "full"] = "none"
    optimizer: Literal["adamw", "adamw-8bit", "muon"] = "adamw"
    lora: LoraSection | None = None
    weight_bits: Literal[4, 8] | None = None
    program: Program = "telechat"
    on_accelerator: bool = True
    returns_freed_memory: bool = False
    program_bytes: int = 1_000_000_000

    def __post_init__(self) -> None:
        for name in ("length", "rows", "micro_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if (self.task == "lora") != (self.lora is not None):
            raise ConfigError("The task lora, and no other, needs the settings of an adapter.")
        if self.layout.dp is None:
            raise ConfigError("The layout does not say how many processes there are.")

    @property
    def trains(self) -> bool:
        """Whether there are gradients."""
        return self.task != "generate"


@dataclass(frozen=True)
class Row:
    """Bytes of one kind of tensor at the moment of the peak, on the device and in the host's memory."""

    name: RowName
    device_bytes: int
    host_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The memory of one device, the one that needs most, at the moment when it needs most.

    Attributes:
        rows: one for each kind, in the order of `ROW_NAMES`.
        moment: when that is, in words.
        rank: which process.
    """

    rows: tuple[Row, ...]
    moment: str
    rank: int

    @property
    def device_bytes(self) -> int:
        """All rows of the device together."""
        return sum(row.device_bytes for row in self.rows)

    @property
    def host_bytes(self) -> int:
        """What one process keeps in the host's memory: what is offloaded, and a checkpoint to be written."""
        return sum(row.host_bytes for row in self.rows)

    def row(self, name: RowName) -> Row:
        """The row of a kind."""
        return next(row for row in self.rows if row.name == name)

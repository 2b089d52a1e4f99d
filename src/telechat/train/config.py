"""Settings of a training run; one frozen dataclass per section of the recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from telechat.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """What to train.

    Attributes:
        config: a config.json to build a fresh model from; empty when `start_from` is given.
        start_from: a model folder whose weights to continue from; empty for fresh weights.
        tokenizer: a folder with the tokenizer; empty means the folder `start_from`.
    """

    config: str = ""
    start_from: str = ""
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if bool(self.config) == bool(self.start_from):
            raise ConfigError(
                "Give exactly one of model.config (fresh weights) and model.start_from (existing ones)."
            )


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """What to train on.

    Attributes:
        train_file: JSON lines with `messages` (OpenAI's shape) and optionally `tools`.
        max_length: longest sample in tokens; longer rows are dropped and counted by reason.
    """

    train_file: str
    max_length: int = 2048


@dataclass(frozen=True, kw_only=True)
class BatchSection:
    """How samples are grouped.

    Attributes:
        tokens_per_step: upper limit of tokens per optimiser step, padding included.
        micro_batches: batches of similar length whose gradients one step adds up; more of them mix lengths,
            and so kinds of rows, within a step.
        rows_per_bucket: rows that are sorted by length together; larger pads less and shuffles less.
    """

    tokens_per_step: int = 8192
    micro_batches: int = 4
    rows_per_bucket: int = 4096


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """How weights move.

    Attributes:
        name: `adamw`, or `muon` for matrices inside blocks with AdamW for everything else.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon's matrices.
        betas, eps, weight_decay: as in AdamW; norms and biases are not decayed.
        max_grad_norm: gradients are scaled down to this global norm; 0 leaves them.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 2e-3
    muon_lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """How the learning rate runs: linear warm-up, a constant stretch, linear decay to zero.

    Attributes:
        total_steps: optimiser steps of the whole run.
        warmup_steps: steps of the warm-up.
        decay_fraction: share of the run, at its end, in which the rate falls to zero.
    """

    total_steps: int = 1000
    warmup_steps: int = 100
    decay_fraction: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ConfigError(
                f"schedule.warmup_steps is {self.warmup_steps}; it must be below total_steps "
                f"({self.total_steps})."
            )
        if not 0 <= self.decay_fraction <= 1:
            raise ConfigError(f"schedule.decay_fraction is {self.decay_fraction}; it must be in [0, 1].")


@dataclass(frozen=True, kw_only=True)
class OutputSection:
    """Where results go.

    Attributes:
        folder: receives run.yaml, metrics.jsonl, loss.html, state.pt (to resume) and model/ (the result).
        save_every: steps between resumable states.
        log_every: steps between metric rows.
    """

    folder: str
    save_every: int = 200
    log_every: int = 10


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
        precision: `bf16` runs matrix products in bf16 under autocast; weights stay fp32.
        compile: fuse the forward and backward pass with torch.compile (needs a C++ compiler).
        seed: seeds weights and data order.
    """

    model: ModelSection
    data: DataSection
    output: OutputSection
    batch: BatchSection = field(default_factory=BatchSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = False
    seed: int = 1234

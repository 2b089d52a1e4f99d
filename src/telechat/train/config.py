"""Settings of a training run; one frozen dataclass per section of the recipe. Reads without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from telechat.data.official.settings import OfficialSettings
from telechat.errors import ConfigError
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.preference_settings import PreferenceSection

PrecisionName = Literal["fp32", "bf16", "bf16-pure", "fp16"]
RopeScheme = Literal["telechat", "none", "ntk-static", "pi", "mindformers-dynamic"]
LoggerName = Literal["tensorboard", "wandb", "swanlab"]


def _check_least(least: int, section: object, where: str, *names: str) -> None:
    """Refuse numbers of a section below `least`, and what is no finite number; null is let through."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"{where}.{name} is {value}; it must be at least {least}.")


@dataclass(frozen=True, kw_only=True)
class RopeSection:
    """Rotary settings that replace the model's own, to train at a greater length. What is null is kept.

    Attributes:
        training_length: tokens (`training_seqlen`); lengths up to it are trained, and the saved config.json
            tells inference.
        base_length: tokens at which the length-dependent stretch of the base begins (`base_seqlen`).
        theta: rotary base.
        scheme: `telechat` stretches the base by length, `none` never does, `ntk-static` by `factor`, `pi`
            divides positions by `factor`.
        factor: see `scheme`.
    """

    training_length: int | None = None
    base_length: int | None = None
    theta: float | None = None
    scheme: RopeScheme | None = None
    factor: float | None = None


@dataclass(frozen=True, kw_only=True)
class MoeSection:
    """Settings that replace a mixture's own. What is null is kept.

    Attributes:
        capacity_factor: an expert takes at most its even share of a batch's assignments times this; the rest
            is dropped. 0 drops none.
        aux_loss_factor: weight of the load-balancing loss of each layer.
    """

    capacity_factor: float | None = None
    aux_loss_factor: float | None = None

    def __post_init__(self) -> None:
        _check_least(0, self, "model.moe", "capacity_factor", "aux_loss_factor")


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """What to train.

    Attributes:
        config: a config.json to build a fresh model from; empty when `start_from` is given.
        start_from: a model folder whose weights to continue from; empty for fresh weights.
        tokenizer: a folder with the tokenizer; empty means the folder `start_from`.
        rope: changes to the rotary settings.
        moe: changes to the settings of a mixture of experts.
    """

    config: str = ""
    start_from: str = ""
    tokenizer: str = ""
    rope: RopeSection = field(default_factory=RopeSection)
    moe: MoeSection = field(default_factory=MoeSection)

    def __post_init__(self) -> None:
        if bool(self.config) == bool(self.start_from):
            raise ConfigError(
                "Give exactly one of model.config (fresh weights) and model.start_from (existing ones)."
            )
        if self.config and not self.tokenizer:
            raise ConfigError("model.config needs model.tokenizer: a folder with the tokenizer.")


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """What to train on.

    Attributes:
        train_file: a file of rows, or a mixing file `{"path": weight}`. The kind of rows is recognised.
        max_length: longest sample in tokens; longer conversations are dropped and counted, texts are cut.
        mode: `official` makes samples as the original scripts do, faults included.
        loss_on: tokens that are learnt: the assistant's `answers`, the `turns` of the official mask, or
            `all`. `official` mode has its own.
        on_bad_row: `stop` at a malformed row, or `skip` and count it.
        cache: a folder that keeps encoded samples, so that they are encoded once; empty for none.
        processes: how many encode rows, in the default mode; the samples do not depend on it.
        official: further settings of the official mode.
    """

    train_file: str
    max_length: int = 2048
    mode: Literal["default", "official"] = "default"
    loss_on: Literal["answers", "turns", "all"] = "answers"
    on_bad_row: Literal["skip", "stop"] = "stop"
    cache: str = ""
    processes: int = 1
    official: OfficialSettings = field(default_factory=OfficialSettings)

    def __post_init__(self) -> None:
        if self.max_length < 2 or self.processes < 1:
            raise ConfigError(
                f"data.max_length is {self.max_length} and data.processes {self.processes}; they must be at "
                "least 2 and 1."
            )


@dataclass(frozen=True, kw_only=True)
class BatchSection:
    """How samples are grouped. These numbers hold for all devices together, so they fit every layout.

    Attributes:
        tokens_per_step: upper limit of tokens per optimiser step, padding included.
        micro_batches: batches whose gradients one step adds up; data-parallel ranks share them. Without
            packing each holds rows of similar length, so more of them mix lengths, and so kinds of rows.
        rows_per_bucket: rows that are sorted by length together; larger pads less and shuffles less.
        packing: fill rows of `data.max_length` with several conversations each, best fit first. Positions
            and attention restart with each; all micro batches have one shape.
    """

    tokens_per_step: int = 8192
    micro_batches: int = 4
    rows_per_bucket: int = 4096
    packing: bool = False

    def __post_init__(self) -> None:
        _check_least(1, self, "batch", "tokens_per_step", "micro_batches", "rows_per_bucket")


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """How weights move.

    Attributes:
        name: `adamw`; `adamw-8bit` with its two moments in 8 bits; or `muon` for matrices inside blocks with
            AdamW for everything else.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon's matrices.
        betas, eps, weight_decay: as in AdamW; norms and biases are not decayed.
        max_grad_norm: gradients are scaled down to this global norm; 0 leaves them.
    """

    name: Literal["adamw", "adamw-8bit", "muon"] = "adamw"
    lr: float = 2e-3
    muon_lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _check_least(0, self, "optimizer", "lr", "muon_lr", "eps", "weight_decay", "max_grad_norm")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas is {list(self.betas)}; both must be in [0, 1).")


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """How long the run is and how its learning rate moves.

    Attributes:
        name: what follows the warm-up. `wsd`: constant, then linear to the end; `cosine` and `linear`: from
            the peak to the end; `polynomial`: the same by `power`; `restarts`: `cycles` cosines one after
            the other; `constant`: the peak throughout.
        total_steps: optimiser steps of the whole run; null means `epochs` passes.
        epochs: passes over the data when `total_steps` is null.
        warmup_steps: steps of the linear warm-up; null means `warmup_fraction` of the run.
        warmup_fraction: share of the run when `warmup_steps` is null.
        decay_fraction: share of the run, at its end, in which `wsd` falls.
        end_factor: learning rate at the end as a share of the peak.
        power: of `polynomial`.
        cycles: of `restarts`.
    """

    name: Literal["wsd", "cosine", "linear", "polynomial", "restarts", "constant"] = "wsd"
    total_steps: int | None = None
    epochs: float = 1.0
    warmup_steps: int | None = None
    warmup_fraction: float = 0.0
    decay_fraction: float = 0.3
    end_factor: float = 0.0
    power: float = 1.0
    cycles: int = 1

    def __post_init__(self) -> None:
        _check_least(1, self, "schedule", "total_steps", "cycles")
        _check_least(0, self, "schedule", "warmup_steps")
        if self.total_steps is not None and (self.warmup_steps or 0) >= self.total_steps:
            raise ConfigError(
                f"schedule.warmup_steps is {self.warmup_steps}; it must be below total_steps "
                f"({self.total_steps})."
            )
        if not (0 < self.epochs < math.inf and 0 < self.power < math.inf):
            raise ConfigError("schedule.epochs and schedule.power must be positive.")
        for name in ("warmup_fraction", "decay_fraction", "end_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"schedule.{name} is {getattr(self, name)}; it must be in [0, 1].")


@dataclass(frozen=True, kw_only=True)
class LoraSection:
    """Low-rank updates of frozen linear layers. The result is an adapter in PEFT's format.

    Attributes:
        rank: inner width of an update.
        alpha: an update is scaled by alpha / rank.
        dropout: share of an update's inputs that is dropped in training.
        targets: layers by the ends of their names.
        target_regex: layers by one regular expression for whole names; replaces `targets`.
        rslora: scale by alpha / sqrt(rank) instead.
        dora: also train the length of each row of a changed weight.
        rank_pattern, alpha_pattern: rank and alpha of layers whose name ends in a match.
        quantize: keep the frozen weights in 8 or 4 bits (QLoRA); null leaves them in floats.
        group_size: inputs that share a scale then: 32, 64 or 128.
        merge: also write model/, the weights with the adapter in them.
        mode: `official` swaps rank and alpha, as the original TeleChat-1 program does by mistake.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "key_value", "dense", "gate_proj", "up_proj", "down_proj")
    target_regex: str = ""
    rslora: bool = False
    dora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    quantize: Literal["int8", "int4"] | None = None
    group_size: int = 32
    merge: bool = False
    mode: Literal["default", "official"] = "default"

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}; it must be in [0, 1).")


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """Loss on rows that are not trained on.

    Attributes:
        file: rows in the same formats as `data.train_file`; empty for none.
        every: steps between evaluations; there is one at the end in any case.
    """

    file: str = ""
    every: int = 200

    def __post_init__(self) -> None:
        _check_least(1, self, "evaluation", "every")


@dataclass(frozen=True, kw_only=True)
class OutputSection:
    """Where results go.

    Attributes:
        folder: receives run.yaml, metrics.jsonl, loss.html, checkpoints/ (to resume) and model/ (the result).
        save_every: steps between checkpoints; there is one at the end in any case.
        keep_last: newest checkpoints that are kept.
        log_every: steps between metric rows.
        loggers: further places for the metrics; each needs its extra.
        dtype: of the weights in model/.
    """

    folder: str
    save_every: int = 200
    keep_last: int = 2
    log_every: int = 10
    loggers: tuple[LoggerName, ...] = ()
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        _check_least(1, self, "output", "save_every", "keep_last", "log_every")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
        lora: train an adapter instead of all weights.
        parallel: how the run is spread over the processes that a launcher started.
        preference: learn from preferences instead of from texts.
        neftune_alpha: strength of the noise on embeddings in training (NEFTune); 0 for none.
        z_loss: factor on the squared log-sum-exp of each token's logits, which keeps them near 0.
        precision: `fp32`; `bf16` and `fp16` compute matrix products in that format under autocast with fp32
            weights, `fp16` with a loss scale; `bf16-pure` keeps weights and optimiser in bf16 as well.
        attention: form of the attention; a form asked for by name runs or fails.
        recompute: `full` keeps only each block's input for the backward pass and computes the block again;
            `selective` keeps the outputs of products and attention and computes the rest again.
        compile: fuse each block's forward and backward pass with torch.compile (needs a C++ compiler).
        device: `auto`, `cpu` or a device's name.
        return_freed_memory: on a CPU, give freed tensors back to the system at once: the run keeps to its
            plan, where it may take up to half as much again, and its steps take up to twice as long.
        seed: seeds weights, data order and dropout.
    """

    model: ModelSection
    data: DataSection
    output: OutputSection
    batch: BatchSection = field(default_factory=BatchSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    lora: LoraSection | None = None
    parallel: ParallelLayout = field(default_factory=ParallelLayout)
    preference: PreferenceSection | None = None
    neftune_alpha: float = 0.0
    z_loss: float = 0.0
    precision: PrecisionName = "bf16"
    attention: Literal["auto", "flash", "sdpa", "reference"] = "auto"
    recompute: Literal["none", "selective", "full"] = "none"
    compile: bool = False
    device: str = "auto"
    return_freed_memory: bool = False
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.preference:
            self._check_preference()
        if self.neftune_alpha < 0 or self.z_loss < 0:
            raise ConfigError("neftune_alpha and z_loss must not be negative.")
        if self.neftune_alpha and self.parallel.tp * self.parallel.cp > 1:
            raise ConfigError(
                f"neftune_alpha scales noise by the length of whole rows, which parallel.tp "
                f"{self.parallel.tp} and cp {self.parallel.cp} divide.",
                hint="Leave neftune_alpha out, or use parallel.dp and pp.",
            )

    def _check_preference(self) -> None:
        """Refuse settings that learning from preferences does not obey."""
        idle = {
            "batch.packing": self.batch.packing,
            "data.mode": self.data.mode != "default",
            "data.loss_on": self.data.loss_on != "answers",
            "data.cache": self.data.cache,
            "data.processes": self.data.processes != 1,
            "z_loss": self.z_loss,
        }
        for name, is_set in idle.items():
            if is_set:
                raise ConfigError(f"preference compares whole answers; {name} does not go with it.")

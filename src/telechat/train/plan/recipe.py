"""The plan of a recipe, and of a run that has been: predicted beside measured.

Knows the files of a run's folder; knows no arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from telechat.config import load_config
from telechat.errors import ConfigError, UsageError
from telechat.models.config import TeleChatConfig
from telechat.train.config import TrainConfig
from telechat.train.metrics import PEAK, read_metrics
from telechat.train.plan.predict import predict
from telechat.train.plan.request import Plan, PlanRequest

RUN_FILE = "run.yaml"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Comparison:
    """A run's memory as predicted and as measured, both in bytes of one process's device."""

    plan: Plan
    predicted_bytes: int
    measured_bytes: int

    @property
    def ratio(self) -> float:
        """Predicted by measured."""
        return self.predicted_bytes / self.measured_bytes


def recipe_request(
    config: TrainConfig,
    model: TeleChatConfig,
    *,
    world_size: int,
    on_accelerator: bool,
    program_bytes: int,
) -> PlanRequest:
    """What a recipe asks for, with every micro batch full.

    Args:
        config: the recipe.
        model: its model.
        world_size: number of processes.

    Raises:
        ConfigError: the layout does not multiply to the processes, or the recipe learns preferences, whose
            memory is not planned.
    """
    if config.preference is not None:
        raise ConfigError(
            "The recipe learns preferences; their memory is not planned.",
            hint="Plan the same recipe without its preference section, at twice the rows.",
        )
    layout = config.parallel.for_world(world_size)
    assert layout.dp is not None
    tokens = config.batch.tokens_per_step // config.batch.micro_batches
    length = min(config.data.max_length, tokens)
    return PlanRequest(
        config=model,
        task="lora" if config.lora else "sft",
        length=length,
        rows=max(1, tokens // length),
        micro_batches=max(1, config.batch.micro_batches // (layout.dp * layout.ep)),
        packed=config.batch.packing,
        layout=layout,
        precision=config.precision,
        attention="reference" if config.attention == "reference" else "fused",
        recompute=config.recompute,
        optimizer=config.optimizer.name,
        lora=config.lora,
        weight_bits={"int8": 8, "int4": 4, None: None}[config.lora.quantize if config.lora else None],
        on_accelerator=on_accelerator,
        returns_freed_memory=config.return_freed_memory,
        program_bytes=program_bytes,
    )


def compare(folder: Path, request: PlanRequest) -> Comparison:
    """Predicted beside measured.

    Args:
        folder: of a run.
        request: of its recipe, see `read_recipe` and `recipe_request`.

    Raises:
        UsageError: the run recorded no memory.
    """
    rows = [row for row in read_metrics(folder / METRICS_FILE) if PEAK in row]
    if not rows:
        raise UsageError(
            f"{folder / METRICS_FILE} records no memory.",
            hint="Train for at least one row of metrics, on a device whose memory can be asked.",
        )
    plan = predict(request)
    return Comparison(plan, plan.device_bytes, int(max(row[PEAK] for row in rows)))


def read_recipe(folder: Path) -> TrainConfig:
    """The settings that a run was started with.

    Raises:
        UsageError: the folder is not that of a run.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise UsageError(f"{folder} has no {RUN_FILE}.", hint="Name the output folder of a training run.")
    return load_config(TrainConfig, path)

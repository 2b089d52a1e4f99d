"""MindFormers' `finetune_*.yaml` as a recipe: maps what we have, lists what it did not use.

Reads without torch. The model's sizes are not its business; they come with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telechat.errors import ConfigError

# Names of layers in `pet_config.target_modules` -> ours.
_TARGETS = {
    "wq": "query", "wk_v": "key_value", "wo": "dense",
    "w1": "gate_proj", "w3": "up_proj", "w2": "down_proj",
}  # fmt: skip
_USED_AT_TOP = (
    "load_checkpoint", "model", "processor", "train_dataset", "runner_config", "optimizer", "lr_schedule",
    "parallel_config", "parallel", "recompute_config", "output_dir", "callbacks", "runner_wrapper", "seed",
    "moe_config",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A recipe, and what goes with it.

    Attributes:
        recipe: fields as in our own files; `model` and `data.train_file` may be missing.
        checkpoint, tokenizer: paths that the file names; None where it names none.
        ignored: sections without a meaning here.
    """

    recipe: dict[str, Any]
    checkpoint: Path | None
    tokenizer: Path | None
    ignored: tuple[str, ...]


def is_run_config(raw: Mapping[str, Any]) -> bool:
    """Whether the contents of a YAML file are MindFormers', not a recipe."""
    model = raw.get("model")
    return isinstance(model, Mapping) and isinstance(model.get("model_config"), Mapping)


def translate(raw: Mapping[str, Any], source: str) -> Translation:
    """The recipe of a MindFormers run file's contents.

    Raises:
        ConfigError: a number that is none, or a layer for LoRA that TeleChat does not have.
    """
    model = raw["model"]["model_config"]
    length = int(model.get("seq_length") or 8192)
    parallel = raw.get("parallel_config") or {}
    ranks = int(parallel.get("data_parallel") or 1)
    runner = raw.get("runner_config") or {}
    micro = int(parallel.get("micro_batch_num") or 1) * int(runner.get("gradient_accumulation_steps") or 1)
    rows = int(runner.get("batch_size") or 1) * ranks * micro
    recipe: dict[str, Any] = {
        "data": {"max_length": length},
        "batch": {"tokens_per_step": rows * length, "micro_batches": ranks * micro, "packing": True},
        "optimizer": _optimizer(raw),
        "schedule": _schedule(raw, source),
        "parallel": _parallel(parallel, raw.get("parallel") or {}),
        "output": {"folder": str(raw.get("output_dir") or "output"), **_saving(raw)},
        "precision": {"bfloat16": "bf16", "float16": "fp16"}.get(str(model.get("compute_dtype")), "fp32"),
        "recompute": "full" if (raw.get("recompute_config") or {}).get("recompute") else "none",
    }
    dataset = ((raw.get("train_dataset") or {}).get("data_loader") or {}).get("dataset_dir")
    if dataset:
        recipe["data"]["train_file"] = str(dataset)
    adapter = model.get("pet_config") or raw.get("pet_config")
    if adapter:
        recipe["lora"] = _lora(adapter, source)
    if isinstance(raw.get("seed"), int):
        recipe["seed"] = raw["seed"]
    vocabulary = ((raw.get("processor") or {}).get("tokenizer") or {}).get("vocab_file")
    return Translation(
        recipe=recipe,
        checkpoint=Path(raw["load_checkpoint"]) if raw.get("load_checkpoint") else None,
        tokenizer=Path(vocabulary) if vocabulary else None,
        ignored=tuple(key for key in raw if key not in _USED_AT_TOP),
    )


def _optimizer(raw: Mapping[str, Any]) -> dict[str, Any]:
    given = raw.get("optimizer") or {}
    wrapper = raw.get("runner_wrapper") or {}
    settings: dict[str, Any] = {
        "lr": float(
            (raw.get("lr_schedule") or {}).get("learning_rate") or given.get("learning_rate") or 5e-5
        ),
        "betas": [float(value) for value in given.get("betas") or (0.9, 0.95)],
        "eps": float(given.get("eps") or 1e-8),
        "weight_decay": float(given.get("weight_decay") or 0.0),
        "max_grad_norm": 1.0 if wrapper.get("use_clip_grad") else 0.0,
    }
    return settings


def _schedule(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    given = raw.get("lr_schedule") or {}
    peak = float(given.get("learning_rate") or 0.0)
    if peak <= 0:
        raise ConfigError(f"{source}: lr_schedule.learning_rate is {given.get('learning_rate')!r}.")
    schedule: dict[str, Any] = {
        "name": "cosine" if "cosine" in str(given.get("type", "")).lower() else "constant",
        "epochs": float((raw.get("runner_config") or {}).get("epochs") or 1),
        "end_factor": float(given.get("lr_end") or 0.0) / peak,
    }
    total = given.get("total_steps")
    if isinstance(total, int) and total > 0:
        schedule["total_steps"] = total
    if given.get("warmup_steps"):
        schedule["warmup_steps"] = int(given["warmup_steps"])
    else:
        schedule["warmup_fraction"] = float(given.get("warmup_ratio") or 0.0)
    return schedule


def _parallel(axes: Mapping[str, Any], mode: Mapping[str, Any]) -> dict[str, Any]:
    """Shares; data-parallel ranks are whatever the run has beside them."""
    names = {
        "tp": "model_parallel",
        "pp": "pipeline_stage",
        "cp": "context_parallel",
        "ep": "expert_parallel",
    }
    chosen: dict[str, Any] = {ours: int(axes.get(theirs) or 1) for ours, theirs in names.items()}
    chosen["zero_stage"] = 1 if mode.get("enable_parallel_optimizer") else 0
    return chosen


def _saving(raw: Mapping[str, Any]) -> dict[str, Any]:
    monitors = [c for c in raw.get("callbacks") or [] if "checkpoint" in str(c.get("type", "")).lower()]
    saving = {}
    for ours, theirs in (("save_every", "save_checkpoint_steps"), ("keep_last", "keep_checkpoint_max")):
        values = [monitor[theirs] for monitor in monitors if monitor.get(theirs)]
        if values:
            saving[ours] = int(values[0])
    return saving


def _lora(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Targets are a regular expression over names of layers; those of TeleChat are looked for in it."""
    pattern = str(given.get("target_modules") or "")
    words = [word.removeprefix(".*") for word in pattern.split("|")]
    unknown = [word for word in words if word not in _TARGETS]
    if unknown:
        raise ConfigError(
            f"{source}: pet_config.target_modules names {unknown[0]!r}; known are {', '.join(_TARGETS)}."
        )
    return {
        "rank": int(given.get("lora_rank") or 8),
        "alpha": float(given.get("lora_alpha") or 16),
        "dropout": float(given.get("lora_dropout") or 0.0),
        "targets": [_TARGETS[word] for word in words],
    }

"""MindFormers' `finetune_*.yaml` as a recipe: maps what we have, lists what it did not use.

Reads without torch. The model's sizes are not its business; they come with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telechat.errors import ConfigError
from telechat.run_file import RunFile

MODEL = "model.model_config"
# Names of layers in `pet_config.target_modules` -> ours.
_TARGETS = {
    "wq": "query", "wk_v": "key_value", "wo": "dense",
    "w1": "gate_proj", "w3": "up_proj", "w2": "down_proj",
}  # fmt: skip
_AXES = {
    "tp": "model_parallel", "pp": "pipeline_stage", "cp": "context_parallel", "ep": "expert_parallel",
}  # fmt: skip
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
# Words in the names of schedules, which are ours of these names; those that restart are not.
_SCHEDULES = ("cosine", "linear", "constant")
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A recipe, and what goes with it.

    Attributes:
        recipe: fields as in our own files; `model.start_from` and `data.train_file` may be missing.
        checkpoint, tokenizer: paths that the file names; None where it names none.
        special_ids: ids that the file says its data has: `{"eos_token_id": 2}`.
        ignored: keys without a meaning here.
    """

    recipe: dict[str, Any]
    checkpoint: Path | None
    tokenizer: Path | None
    special_ids: Mapping[str, int]
    ignored: tuple[str, ...]


def translate(raw: Mapping[str, Any], source: str) -> Translation:
    """The recipe of a MindFormers run file's contents.

    Raises:
        ConfigError: a value of the wrong kind, a run that is no training, or a layer for LoRA that TeleChat
            does not have.
    """
    file = RunFile(raw, source)
    mode = file.get("run_mode", "finetune")
    if mode not in ("train", "finetune"):
        raise ConfigError(
            f"{source}: run_mode is {mode!r}; training takes train and finetune.",
            hint=f"To answer with this model: telechat generate --config {source}",
        )
    recipe: dict[str, Any] = {
        "model": _model(file),
        **_rows(file),
        "optimizer": _optimizer(file),
        "schedule": _schedule(file),
        "parallel": _parallel(file),
        "output": {"folder": file.text("output_dir") or "output", **_saving(file)},
        "precision": _precision(file),
        "recompute": _recompute(file),
    }
    where = next((place for place in (f"{MODEL}.pet_config", "pet_config") if file.has(place)), None)
    if where is not None:
        recipe["lora"] = _lora(file, where)
    if file.get("seed") is not None:
        recipe["seed"] = file.number("seed", 0)
    checkpoint, vocabulary = file.text("load_checkpoint"), file.text("processor.tokenizer.vocab_file")
    # -1 stands for none, in the files for pre-training.
    ids = {name: file.number(f"{MODEL}.{name}", -1) for name in _SPECIAL_IDS}
    return Translation(
        recipe=recipe,
        checkpoint=Path(checkpoint) if checkpoint else None,
        tokenizer=Path(vocabulary) if vocabulary else None,
        special_ids={name: token_id for name, token_id in ids.items() if token_id >= 0},
        ignored=file.ignored(),
    )


def _model(file: RunFile) -> dict[str, Any]:
    """Rotary settings of a longer context, and how a mixture's router is trained."""
    rope: dict[str, Any] = {}
    theta = file.number(f"{MODEL}.theta", 0.0)
    if theta:
        rope["theta"] = theta
    for ours, theirs in (("base_length", "pretrain_seqlen"), ("training_length", "training_seqlen")):
        length = file.number(f"{MODEL}.{theirs}", 0)
        if length:
            rope[ours] = length
    experts: dict[str, Any] = {}
    capacity = file.number("moe_config.capacity_factor", 0.0)
    if capacity:
        experts["capacity_factor"] = capacity
    factors = file.numbers("moe_config.aux_loss_factors")
    if factors:
        experts["aux_loss_factor"] = factors[0]
    return {**({"rope": rope} if rope else {}), **({"moe": experts} if experts else {})}


def _rows(file: RunFile) -> dict[str, Any]:
    """The sections `data` and `batch`: as many rows of full length a step as all ranks take together."""
    length = file.number(f"{MODEL}.seq_length", 8192)
    ranks = file.number("parallel_config.data_parallel", 1)
    accumulated = file.number("runner_config.gradient_accumulation_steps", 1)
    micro = file.number("parallel_config.micro_batch_num", 1) * accumulated
    rows = file.number("runner_config.batch_size", 1) * ranks * micro
    data: dict[str, Any] = {"max_length": length}
    dataset = file.text("train_dataset.data_loader.dataset_dir") or file.text("train_dataset.dataset_dir")
    if dataset:
        data["train_file"] = dataset
    batch = {"tokens_per_step": rows * length, "micro_batches": ranks * micro, "packing": True}
    return {"data": data, "batch": batch}


def _optimizer(file: RunFile) -> dict[str, Any]:
    rate = file.number("optimizer.learning_rate", 5e-5)
    betas = file.numbers("optimizer.betas", (0.9, 0.95))
    if len(betas) != 2:
        raise file.wrong("optimizer.betas", betas, "two numbers")
    return {
        "lr": file.number("lr_schedule.learning_rate", rate),
        "betas": betas,
        "eps": file.number("optimizer.eps", 1e-8),
        "weight_decay": file.number("optimizer.weight_decay", 0.0),
        "max_grad_norm": 1.0 if file.flag("runner_wrapper.use_clip_grad") else 0.0,
    }


def _precision(file: RunFile) -> str:
    dtype = file.text(f"{MODEL}.compute_dtype") or "float32"
    if dtype not in _PRECISIONS:
        raise file.wrong(f"{MODEL}.compute_dtype", dtype, f"one of {', '.join(_PRECISIONS)}")
    return _PRECISIONS[dtype]


def _schedule_name(file: RunFile) -> str:
    kind = file.text("lr_schedule.type") or "constant"
    found = [name for name in _SCHEDULES if name in kind.lower()]
    if not found or "restart" in kind.lower():
        raise file.wrong("lr_schedule.type", kind, f"a schedule of the kind {', '.join(_SCHEDULES)}")
    return found[0]


def _schedule(file: RunFile) -> dict[str, Any]:
    peak = file.number("lr_schedule.learning_rate", 0.0)
    if peak <= 0:
        raise ConfigError(f"{file.source}: lr_schedule.learning_rate is {peak}; it must be above 0.")
    schedule: dict[str, Any] = {
        "name": _schedule_name(file),
        "epochs": file.number("runner_config.epochs", 1.0),
        "end_factor": file.number("lr_schedule.lr_end", 0.0) / peak,
    }
    total = file.number("lr_schedule.total_steps", -1)
    if total > 0:
        schedule["total_steps"] = total
    warmup_steps = file.number("lr_schedule.warmup_steps", 0)
    if warmup_steps:
        schedule["warmup_steps"] = warmup_steps
    else:
        schedule["warmup_fraction"] = file.number("lr_schedule.warmup_ratio", 0.0)
    return schedule


def _parallel(file: RunFile) -> dict[str, Any]:
    """Shares; data-parallel ranks are whatever the run has beside them."""
    chosen: dict[str, Any] = {ours: file.number(f"parallel_config.{name}", 1) for ours, name in _AXES.items()}
    chosen["zero_stage"] = int(file.flag("parallel.enable_parallel_optimizer"))
    interleave, offset = file.number(f"{MODEL}.pp_interleave_num", 1), file.get(f"{MODEL}.offset", 0)
    if chosen["pp"] > 1 and interleave > 1:
        chosen["pp_interleave"] = interleave
    if chosen["pp"] > 1 and offset:
        if not isinstance(offset, list):
            raise file.wrong(f"{MODEL}.offset", offset, "0, or a list of whole numbers for each chunk")
        chosen["pp_offset"] = offset
    return chosen


def _recompute(file: RunFile) -> str:
    if file.flag("recompute_config.recompute"):
        return "full"
    return "selective" if file.flag("recompute_config.select_recompute") else "none"


def _saving(file: RunFile) -> dict[str, Any]:
    callbacks = file.get("callbacks", [])
    if not isinstance(callbacks, list) or not all(isinstance(entry, Mapping) for entry in callbacks):
        raise file.wrong("callbacks", callbacks, "a list of sections, each with a type")
    monitors = [entry for entry in callbacks if "checkpoint" in str(entry.get("type", "")).lower()]
    saving = {}
    for ours, theirs in (("save_every", "save_checkpoint_steps"), ("keep_last", "keep_checkpoint_max")):
        values = [monitor[theirs] for monitor in monitors if monitor.get(theirs)]
        if values:
            saving[ours] = file.as_number(f"callbacks.{theirs}", values[0], int)
    return saving


def _lora(file: RunFile, where: str) -> dict[str, Any]:
    """Targets are a regular expression over names of layers; those of TeleChat are looked for in it."""
    kind = file.get(f"{where}.pet_type", "lora")
    if kind != "lora":
        raise ConfigError(f"{file.source}: {where}.pet_type is {kind!r}; there is only lora.")
    pattern = file.text(f"{where}.target_modules") or ""
    words = [word.removeprefix(".*") for word in pattern.split("|")]
    unknown = [word for word in words if word not in _TARGETS]
    if unknown:
        raise ConfigError(
            f"{file.source}: {where}.target_modules names {unknown[0]!r}; known are {', '.join(_TARGETS)}."
        )
    return {
        "rank": file.number(f"{where}.lora_rank", 8),
        "alpha": file.number(f"{where}.lora_alpha", 16.0),
        "dropout": file.number(f"{where}.lora_dropout", 0.0),
        "targets": [_TARGETS[word] for word in words],
    }

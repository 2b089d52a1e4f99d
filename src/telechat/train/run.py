"""One training run from its settings: load, encode, train, save. The command line calls `main`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from telechat.checkpoint import resolve_model
from telechat.config import load_config, to_mapping, to_yaml
from telechat.data.dataset import load_samples
from telechat.device import CPU, parse_dtype, resolve_device
from telechat.errors import ConfigError
from telechat.models import TeleChatConfig
from telechat.tokenizer import Tokenizer, load_tokenizer
from telechat.tokenizer.load import copy_tokenizer_files
from telechat.train.adapters import merged_weights
from telechat.train.allocation import return_freed_blocks
from telechat.train.checkpoints import CheckpointStore
from telechat.train.config import RopeSection, TrainConfig
from telechat.train.distributed.groups import is_first, leave, world_size
from telechat.train.distributed.start import open_engine
from telechat.train.engine import TrainEngine
from telechat.train.feed import Feed
from telechat.train.flops import matmul_rate, slower_than_fp32, step_cost
from telechat.train.interruption import Interruption
from telechat.train.loggers import open_loggers
from telechat.train.loop import Meter, Trainer
from telechat.train.metrics import Metrics, Progress
from telechat.train.objective import CrossEntropy, Objective
from telechat.train.precision import PRECISIONS
from telechat.train.preference import PreferenceObjective
from telechat.train.preference_data import open_preferences
from telechat.train.report import write_loss_page
from telechat.train.results import ADAPTER_FOLDER, save_adapter, save_weights, write_generation_config
from telechat.train.schedule import plan_schedule
from telechat.train.setup import model_config

log = logging.getLogger(__name__)


def main(config_path: str | None, overrides: Mapping[str, str] | None = None) -> Path:
    """Run the recipe at `config_path` with `overrides` ("section.key" -> text).

    A folder with a checkpoint is continued; a finished one only writes its results again.

    Returns:
        The model folder, or that of the adapter where only one is trained.
    """
    config = load_config(TrainConfig, config_path, overrides)
    folder = Path(config.output.folder)
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
    on_cpu = resolve_device(config.device).type == CPU.type
    if config.return_freed_memory and on_cpu and not return_freed_blocks():
        log.warning("return_freed_memory does nothing here: the C library is not glibc.")
    tokenizer_folder = resolve_model(config.model.tokenizer or config.model.start_from)
    tokenizer = load_tokenizer(tokenizer_folder)
    check_length(config, model_config(config.model))
    warn_of_base(config)
    start = open_engine(config, choose_objective(config))
    engine = start.engine
    feed = open_feed(config, config.data.train_file, tokenizer, engine)
    evaluation = None
    if config.evaluation.file:
        evaluation = open_feed(config, config.evaluation.file, tokenizer, engine)
    trainer = Trainer(
        engine,
        feed,
        plan_schedule(config.schedule, steps_per_epoch=feed.steps_per_epoch),
        config,
        checkpoints=CheckpointStore(folder, keep_last=config.output.keep_last),
        meter=Meter(
            step_cost(start.model.config, start.model.named_parameters()),
            matmul_rate(engine.device, PRECISIONS[config.precision].compute),
            num_devices=start.num_devices,
        ),
        evaluation=evaluation,
    )
    train(trainer, folder)
    adapter = None
    if config.lora:
        adapter = save_adapter(engine, start.model.config, config.lora, config.model.start_from, folder)
    result = folder / "model" if config.lora is None or config.lora.merge else folder / ADAPTER_FOLDER
    if result.name == "model":
        weights = engine.weights() if adapter is None else merged_weights(engine.weights(), adapter)
        save_weights(weights, start.model.config, result, dtype=parse_dtype(config.output.dtype))
    if result.name == "model" and is_first():
        copy_tokenizer_files(tokenizer, result)
        write_generation_config(tokenizer_folder, result, tokenizer)
    leave()
    return result


def warn_of_slow_products(trainer: Trainer) -> None:
    """Say so where the processor has no instructions for the precision, and fp32 would be much faster."""
    factor = slower_than_fp32(trainer.engine.device, trainer.meter.matmul_rate)
    if factor is not None:
        log.warning(
            "this processor has no instructions for %s: products in fp32 are %.0f times as fast; "
            "train with --precision fp32",
            trainer.config.precision,
            factor,
        )


def train(trainer: Trainer, folder: Path) -> None:
    """Resume where the folder left off, train to the end, and draw the curves.

    Of several processes, the first keeps the metrics; the losses it has are those of all.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the step was finished and saved; of several processes at once.
        SystemExit: SIGTERM, likewise.
    """
    config = trainer.config
    trainer.resume()
    if not is_first():
        try:
            trainer.run()
        finally:
            trainer.checkpoints.close()
        return
    loggers = open_loggers(config.output.loggers, folder, to_mapping(config), resumed_step=trainer.step)
    metrics = Metrics(folder, resumed_step=trainer.step, loggers=loggers)
    log.info(
        "mfu is relative to %.3g operations/s a device: a square matrix product here, in %s",
        trainer.meter.matmul_rate,
        config.precision,
    )
    if config.precision != "fp32":
        warn_of_slow_products(trainer)
    try:
        progress = Progress(first_step=trainer.step, total_steps=trainer.schedule.total_steps)
        if world_size() > 1:
            trainer.run(metrics, progress)
        else:
            with Interruption() as interruption:
                trainer.run(metrics, progress, interruption)
            interruption.end()
    finally:
        metrics.close()
        trainer.checkpoints.close()
        if metrics.rows:
            write_loss_page(metrics.rows, folder / "loss.html", title=f"Training of {folder.name}")


def check_length(config: TrainConfig, model: TeleChatConfig) -> None:
    """Refuse samples beyond the length that the model's rotary tables are trained for.

    Raises:
        ConfigError: says which setting raises it.
    """
    if config.data.max_length > model.training_seqlen:
        raise ConfigError(
            f"data.max_length is {config.data.max_length}; this model is trained at up to "
            f"{model.training_seqlen} tokens.",
            hint=f"Set model.rope.training_length to {config.data.max_length} to train longer ones.",
        )


def warn_of_base(config: TrainConfig) -> None:
    """Say what an adapter on its own will lack: it is used on a base that must be as it was in training."""
    if config.lora is None or config.lora.merge:
        return
    if config.model.config:
        log.warning("the base of this adapter is fresh, and is not written unless lora.merge is set")
    elif config.model.rope != RopeSection():
        log.warning(
            "adapter/ does not hold the settings of model.rope: give them to config.json of %s where the "
            "adapter is used, or set lora.merge",
            config.model.start_from,
        )


def choose_objective(config: TrainConfig) -> Objective:
    """What the recipe minimises."""
    if config.preference:
        return PreferenceObjective(config.preference)
    return CrossEntropy(z_loss=config.z_loss)


def open_feed(config: TrainConfig, file: str, tokenizer: Tokenizer, engine: TrainEngine) -> Feed:
    """The samples of a file as batches, this rank's share of them."""
    if config.preference:
        return open_preferences(config, file, tokenizer, engine)
    data = config.data
    samples = load_samples(
        file,
        tokenizer,
        max_length=data.max_length,
        mode=data.mode,
        loss_on=data.loss_on,
        pack=config.batch.packing,
        on_bad_row=data.on_bad_row,
        seed=config.seed,
        official=data.official,
        cache=Path(data.cache) if data.cache else None,
        num_processes=data.processes,
    )
    return Feed(
        samples,
        config.batch,
        row_length=data.max_length if config.batch.packing else None,
        pad_id=tokenizer.special.pad,
        seed=config.seed,
        rank=engine.data_rank,
        num_ranks=engine.data_size,
    )

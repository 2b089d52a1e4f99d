"""One training run from its settings: load, encode, train, save. The command line calls `main`."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from telechat.checkpoint import load_model, save_model
from telechat.config import load_config, to_yaml
from telechat.errors import ConfigError
from telechat.models import TeleChatConfig, TeleChatModel, build_model, initialise
from telechat.tokenizer import Tokenizer, load_tokenizer
from telechat.tokenizer.load import copy_tokenizer_files
from telechat.train.config import TrainConfig
from telechat.train.loop import Trainer, describe
from telechat.train.report import Metrics, write_loss_page
from telechat.train.samples import encode_rows, read_rows

log = logging.getLogger(__name__)


def main(config_path: str | None, overrides: Mapping[str, str] | None = None) -> Path:
    """Run the recipe at `config_path` with `overrides` ("section.key" -> text). Returns the model folder.

    A folder with a resumable state is continued; a finished one only writes its results again.
    """
    config = load_config(TrainConfig, config_path, overrides)
    folder = Path(config.output.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
    tokenizer_folder = Path(config.model.tokenizer or config.model.start_from)
    tokenizer = load_tokenizer(tokenizer_folder)
    samples = encode_rows(
        read_rows(Path(config.data.train_file)), tokenizer, max_length=config.data.max_length
    )
    log.info("%s", describe(samples))
    model = _model(config)
    trainer = Trainer(model, samples, config)
    trainer.resume()
    metrics = Metrics(folder, resumed_step=trainer.step, total_steps=config.schedule.total_steps)
    trainer.run(metrics)
    write_loss_page(metrics.rows, folder / "loss.html", title=f"Training loss of {folder.name}")
    result = folder / "model"
    save_model(model, result, dtype=torch.bfloat16)
    copy_tokenizer_files(tokenizer, result)
    _write_generation_config(tokenizer_folder, result, tokenizer)
    return result


def _write_generation_config(source: Path, target: Path, tokenizer: Tokenizer) -> None:
    """Keep the generation defaults of the model that was continued; a fresh one decodes greedily."""
    name = "generation_config.json"
    if (source / name).exists():
        shutil.copyfile(source / name, target / name)
        return
    special = tokenizer.special
    defaults = {
        "do_sample": False,
        "repetition_penalty": 1.0,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
        "user_token_id": special.user,
        "bot_token_id": special.bot,
    }
    (target / name).write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")


def _model(config: TrainConfig) -> TeleChatModel:
    """The model to train, in fp32."""
    if config.model.start_from:
        return load_model(config.model.start_from, dtype="float32").train()
    path = Path(config.model.config)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"Cannot read the model configuration {path}: {error}.") from error
    model = build_model(TeleChatConfig.from_hf(raw))
    initialise(model, seed=config.seed)
    return model

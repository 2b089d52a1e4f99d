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
from telechat.tokenizer import load_tokenizer
from telechat.train.config import TrainConfig
from telechat.train.loop import Trainer, describe
from telechat.train.report import Metrics, write_loss_page
from telechat.train.samples import encode_rows, read_rows

log = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json")


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
    for name in _TOKENIZER_FILES:
        if (tokenizer_folder / name).exists():
            shutil.copyfile(tokenizer_folder / name, result / name)
    return result


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

"""Worker: steps of our training loop on random weights and rows.

python -m benchmarks.workers.train_telechat --shape 32k
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.train_shapes import TRAIN_SHAPES, TrainShape, rows_of_step
from benchmarks.workers.loop import Case, Result, serve
from telechat.data.samples import BatchArrays
from telechat.device import device_name, peak_memory, resolve_device, synchronize
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, build_model, count_parameters
from telechat.train.adapters import adapter_config, add_adapters
from telechat.train.checkpoints import CheckpointStore
from telechat.train.config import (
    BatchSection,
    DataSection,
    LoraSection,
    ModelSection,
    OptimizerSection,
    OutputSection,
    ScheduleSection,
    TrainConfig,
)
from telechat.train.engine import LocalEngine
from telechat.train.feed import Feed
from telechat.train.flops import matmul_rate, step_cost
from telechat.train.loop import Meter, Trainer
from telechat.train.objective import CrossEntropy
from telechat.train.precision import PRECISIONS
from telechat.train.schedule import plan_schedule
from telechat.train.setup import choose_training_attention, prepare_blocks

_NUM_SAMPLES = 4096


class RandomRows:
    """Samples of one length, made when they are asked for."""

    def __init__(self, shape: TrainShape) -> None:
        self.shape = shape

    @property
    def lengths(self) -> list[int]:
        """Tokens per sample."""
        return [self.shape.length] * _NUM_SAMPLES

    def batch(
        self, rows: Sequence[int], *, pad_id: int, num_rows: int | None = None, length: int | None = None
    ) -> BatchArrays:
        """A step's rows, whatever their numbers."""
        ids = rows_of_step(self.shape, rows[0]).numpy()
        targets = np.full_like(ids, -100)
        targets[:, :-1] = ids[:, 1:]
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
        return BatchArrays(ids, positions, np.zeros(ids.shape, np.int32), targets, None, False)


def trainer_for(shape: TrainShape, args: argparse.Namespace, folder: Path) -> Trainer:
    """Our loop over a model with random weights."""
    device = resolve_device(args.device)
    model_shape = shape.model
    config = TrainConfig(
        model=ModelSection(config="random", tokenizer="none"),
        data=DataSection(train_file="random", max_length=shape.length),
        output=OutputSection(folder=str(folder)),
        batch=BatchSection(tokens_per_step=shape.tokens, micro_batches=1),
        optimizer=OptimizerSection(name=args.optimizer, lr=1e-4, max_grad_norm=1.0),
        schedule=ScheduleSection(name="constant", total_steps=10**6),
        lora=LoraSection(rank=16) if args.lora else None,
        precision=args.precision,
        recompute=args.recompute,
        compile=args.compile,
    )
    precision = PRECISIONS[config.precision]
    model_config = TeleChatConfig(
        vocab_size=model_shape.vocab,
        hidden_size=model_shape.hidden,
        num_layers=model_shape.num_layers,
        num_heads=model_shape.num_heads,
        num_kv_heads=model_shape.num_heads,
        ffn_hidden_size=model_shape.ffn,
        tie_word_embeddings=shape.is_tied,
        rope=RopeSettings(base_length=shape.length, training_length=shape.length),
    )
    model = build_model(model_config, device="meta", target=device).to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() == 2 else parameter.fill_(float(parameter.dim()))
    model = model.to(precision.weights)
    choose_training_attention(model, config.attention, precision.compute, device.type)
    if config.lora:
        add_adapters(model, config.lora, adapter_config(config.lora, "random"), precision, seed=0)
    prepare_blocks(model.transformer.blocks, config)
    engine = LocalEngine(model, CrossEntropy(), config.optimizer, config.precision)
    feed = Feed(RandomRows(shape), config.batch, row_length=shape.length, pad_id=0, seed=0)
    return Trainer(
        engine,
        feed,
        plan_schedule(config.schedule, steps_per_epoch=1),
        config,
        checkpoints=CheckpointStore(folder, keep_last=1),
        meter=Meter(
            step_cost(model_config, model.named_parameters()), matmul_rate(device, precision.compute), 1
        ),
    )


class Ours:
    """Steps of the loop, without its files; `folder` is where they would be, and goes with this."""

    def __init__(self, shape: TrainShape, trainer: Trainer, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.folder = folder
        self.shape = shape
        self.trainer = trainer
        self.steps = trainer.feed.steps(0)

    def train(self, *, warmup: int, steps: int) -> Result:
        """Seconds and operations of `steps` steps after `warmup` others, and the process's peak memory."""
        trainer, operations = self.trainer, 0.0
        for number in range(warmup + steps):
            if number == warmup:
                synchronize(trainer.engine.device)
                start = time.perf_counter()
            shown = next(self.steps)
            trainer._train_step(shown)
            trainer.step += 1
            operations += trainer.meter.cost.of(shown.batches[0])
        synchronize(trainer.engine.device)
        seconds = time.perf_counter() - start
        share = operations * steps / (warmup + steps) / seconds / trainer.meter.matmul_rate
        peak = peak_memory(trainer.engine.device) or 0
        return {
            "tokens": float(self.shape.tokens * steps),
            "seconds": seconds,
            "mfu": share,
            "peak_bytes": float(peak),
        }


def open_worker(words: list[str]) -> tuple[dict[str, Case], dict[str, Any]]:
    """Make the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=TRAIN_SHAPES, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--recompute", default="none")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(words)
    shape = TRAIN_SHAPES[args.shape]
    # Nothing is written into it, but the loop wants a place.
    folder = tempfile.TemporaryDirectory(prefix="bench-train-")
    trainer = trainer_for(shape, args, Path(folder.name))
    engine = trainer.engine
    assert isinstance(engine, LocalEngine)
    about = {
        "torch": torch.__version__,
        "device": device_name(engine.device),
        "weights": count_parameters(engine.model.config),
        "matmul_rate": trainer.meter.matmul_rate,
        "batch": dataclasses.asdict(shape),
        "configuration": " ".join(words),
    }
    return {"train": Ours(shape, trainer, folder).train}, about


if __name__ == "__main__":
    sys.exit(serve(lambda: open_worker(sys.argv[1:])))

"""Worker: steps of Hugging Face's Trainer on the Llama of the same widths, random weights and rows.

python -m benchmarks.workers.train_transformers --shape 32k

Timed inside a run, from one step to another, so that the Trainer's start is not counted.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from benchmarks.train_shapes import TRAIN_SHAPES, TrainShape, rows_of_step
from benchmarks.workers.loop import Case, Result, serve
from telechat.device import device_name, peak_memory, resolve_device, synchronize


class Rows(Dataset[dict[str, Tensor]]):
    """The rows of all steps, one after another."""

    def __init__(self, shape: TrainShape, num_steps: int) -> None:
        self.shape, self.num_steps = shape, num_steps

    def __len__(self) -> int:
        return self.shape.rows * self.num_steps

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = rows_of_step(self.shape, index // self.shape.rows)[index % self.shape.rows]
        return {"input_ids": ids, "labels": ids}


class Stopwatch(TrainerCallback):
    """Notes when the counted steps begin and when they are done."""

    def __init__(self, device: torch.device, warmup: int) -> None:
        self.device, self.warmup = device, warmup
        self.started = 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After an optimiser step."""
        if state.global_step == self.warmup:
            synchronize(self.device)
            self.started = time.perf_counter()


class Peer:
    """The model and the Trainer's settings, equal to ours in format, optimiser and clipping."""

    def __init__(self, shape: TrainShape, args: argparse.Namespace) -> None:
        self.shape, self.args = shape, args
        self.device = resolve_device(args.device)
        model = shape.model
        config = LlamaConfig(
            vocab_size=model.vocab,
            hidden_size=model.hidden,
            intermediate_size=model.ffn,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.num_heads,
            max_position_embeddings=shape.length,
            tie_word_embeddings=shape.is_tied,
            attn_implementation="sdpa",
            use_cache=False,
        )
        self.model = LlamaForCausalLM(config)

    def train(self, *, warmup: int, steps: int) -> Result:
        """Seconds of `steps` steps after `warmup` others, and the process's peak memory."""
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                output_dir=folder,
                max_steps=warmup + steps,
                per_device_train_batch_size=self.shape.rows,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                weight_decay=0.1,
                adam_beta2=0.95,
                max_grad_norm=1.0,
                optim="adamw_torch_fused",
                bf16=True,
                use_cpu=self.device.type == "cpu",
                torch_compile=self.args.compile,
                gradient_checkpointing=self.args.recompute == "full",
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            stopwatch = Stopwatch(self.device, warmup)
            rows = Rows(self.shape, warmup + steps)
            trainer = Trainer(model=self.model, args=settings, train_dataset=rows, callbacks=[stopwatch])
            ended = Stopwatch(self.device, warmup + steps)
            trainer.add_callback(ended)
            trainer.train()
        return {
            "tokens": float(self.shape.tokens * steps),
            "seconds": ended.started - stopwatch.started,
            "peak_bytes": float(peak_memory(self.device) or 0),
        }


def open_worker(words: list[str]) -> tuple[dict[str, Case], dict[str, Any]]:
    """Make the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=TRAIN_SHAPES, required=True)
    parser.add_argument("--recompute", default="none")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(words)
    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    peer = Peer(TRAIN_SHAPES[args.shape], args)
    about = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "device": device_name(peer.device),
        "weights": peer.model.num_parameters(),
        "configuration": " ".join(words),
    }
    return {"train": peer.train}, about


if __name__ == "__main__":
    sys.exit(serve(lambda: open_worker(sys.argv[1:])))

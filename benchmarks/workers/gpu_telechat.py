"""Worker: our engine on an accelerator, with random weights of a shape that are made there.

    python -m benchmarks.workers.gpu_telechat --shape 7B --format int4

Measured through the engine as users have it; the cases are those of the worker for the CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import wraps

import torch

from benchmarks.shapes import SHAPES
from benchmarks.workers.loop import Case, Result, serve
from benchmarks.workers.telechat import Ours, random_model
from telechat import LLM
from telechat.checkpoint.hub import demo_folder
from telechat.device import device_name, resolve_device, synchronize
from telechat.models.quantized import quantize_layers
from telechat.ops.quantized import WeightScheme
from telechat.tokenizer import load_tokenizer

BLOCK_SIZE = 64
MAX_MODEL_LEN = 4096
# A batch of 64 with 512 tokens each, and one prompt as long as the longest.
NUM_BLOCKS = 64 * 8 + MAX_MODEL_LEN // BLOCK_SIZE + 64
GROUP_SIZE = 32


def settled(case: Callable[..., Result], device: torch.device) -> Case:
    """The same, answering when the device has nothing left to do: the next one to be measured uses it too."""

    @wraps(case)
    def call(**arguments: object) -> Result:
        result = case(**arguments)
        synchronize(device)
        return result

    return call


def open_worker(words: list[str]) -> tuple[dict[str, Case], dict[str, object]]:
    """Make the model on the device, and the engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--format", choices=("int4", "int8", "bf16"), required=True)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(words)
    device = resolve_device(args.device)
    tokenizer = load_tokenizer(demo_folder())
    model = random_model(SHAPES[args.shape], tokenizer.vocab_size, device)
    if args.format != "bf16":
        quantize_layers(model, WeightScheme.named(args.format, GROUP_SIZE))
    llm = LLM(
        model,
        tokenizer,
        max_model_len=MAX_MODEL_LEN,
        max_batch_size=64,
        block_size=BLOCK_SIZE,
        num_blocks=NUM_BLOCKS,
    )
    ours = Ours(llm, tokenizer.vocab_size)
    cases = {name: settled(getattr(ours, name), device) for name in ("decode", "prefill")}
    about = {
        "executor": llm.executor.describe(),
        "device": device_name(device),
        "cache": llm.cache_plan.describe(),
    }
    return cases, about


if __name__ == "__main__":
    sys.exit(serve(lambda: open_worker(sys.argv[1:])))

"""What whole runs of small models take on the CPU, beside their plans. A program.

`python -m tests.unit.train.plan.measured_runs [NAMES] [--steps 4]` prints a line of JSON for each run and
needs ten to twenty seconds of a core for it. Each is a process of its own, as users start it: a fork of this
one would not hold the pages of libraries that it does not touch.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from telechat.checkpoint import read_config, resolve_model, save_model
from telechat.cli.plan import program_bytes
from telechat.models import build_model, initialise
from telechat.tokenizer import load_tokenizer
from telechat.tokenizer.load import copy_tokenizer_files
from telechat.train.plan.recipe import compare, read_recipe, recipe_request
from telechat.train.setup import model_config

LENGTH = 1024
WORDS = ["the", "bookshop", "opens", "at", "nine", "and", "sells", "maps", "of", "towns"]


@dataclass(frozen=True)
class Run:
    """A recipe's fields, and the least and most words of its answers."""

    fields: dict[str, str] = field(default_factory=dict)
    words: tuple[int, int] = (20, 120)


RUNS = {
    "full": Run({"batch.packing": "true"}),
    "bf16": Run({"batch.packing": "true", "precision": "bf16"}),
    "recomputed": Run({"batch.packing": "true", "recompute": "full", "batch.tokens_per_step": "8192"}),
    "adapter": Run({"batch.packing": "true", "lora.rank": "8"}),
    "small-batches": Run({"batch.packing": "true", "batch.micro_batches": "8", "data.max_length": "512"}),
    "many-lengths": Run(words=(5, 400)),
}


def write_model(folder: Path) -> None:
    """A random model of 13 million weights with the demo's tokenizer."""
    demo = resolve_model("demo")
    config = read_config(demo).replace(
        vocab_size=8192,
        hidden_size=384,
        num_layers=4,
        num_heads=6,
        num_kv_heads=6,
        ffn_hidden_size=1024,
        tie_word_embeddings=False,
    )
    model = build_model(config)
    initialise(model, seed=0)
    save_model(model, folder)
    copy_tokenizer_files(load_tokenizer(demo), folder)


def write_rows(path: Path, words: tuple[int, int]) -> None:
    """Four hundred questions, each with an answer of so many words."""
    draw = random.Random(0)
    rows = []
    for number in range(400):
        answer = " ".join(draw.choices(WORDS, k=draw.randint(*words)))
        messages = [{"role": "user", "content": str(number)}, {"role": "assistant", "content": answer}]
        rows.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(rows), encoding="utf-8")


def measure(name: str, folder: Path, steps: int, program: int) -> dict[str, Any]:
    """Train; predicted and measured bytes, and what the plan calls the worst moment.

    Args:
        program: bytes that a process holds beside tensors.
    """
    run, output = RUNS[name], folder / name
    rows = folder / f"{name}.jsonl"
    write_rows(rows, run.words)
    recipe = folder / f"{name}.yaml"
    recipe.write_text(
        f"model: {{start_from: '{folder}/model'}}\ndata: {{train_file: '{rows}'}}\n"
        f"output: {{folder: '{output}'}}\ndevice: cpu\n",
        encoding="utf-8",
    )
    fields = {
        "data.max_length": str(LENGTH),
        "batch.tokens_per_step": "4096",
        "batch.micro_batches": "2",
        "precision": "fp32",
        "schedule.total_steps": str(steps),
        "output.log_every": "1",
        "return_freed_memory": "true",
        **run.fields,
    }
    options = [word for key, value in fields.items() for word in (f"--{key}", value)]
    subprocess.run([sys.executable, "-m", "telechat", "train", "--config", recipe, *options], check=True)
    config = read_recipe(output)
    request = recipe_request(
        config, model_config(config.model), world_size=1, on_accelerator=False, program_bytes=program
    )
    found = compare(output, request)
    return {
        "run": name,
        "predicted_by_measured": round(found.ratio, 3),
        "predicted_mb": round(found.predicted_bytes / 1e6),
        "measured_mb": round(found.measured_bytes / 1e6),
        "moment": found.plan.moment,
    }


def main(words: list[str] | None = None) -> int:
    """Run them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args(words)
    program = program_bytes(on_accelerator=False)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model")
        for name in args.names or RUNS:
            print(json.dumps(measure(name, Path(folder), args.steps, program)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs the recipes of documented runs on tiny models, every axis of their layouts at two. A program.

`python -m tests.distributed.recipe_runs [NAMES] [--steps 20] [--processes 16] [--timeout 300] [--folder DIR]`
needs one to three seconds of a core for each process of a recipe. It imports torch once and forks the
processes, which meet over gloo.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from tests.distributed.train_forks import in_processes
from tests.tiny import TEXTS

from telechat.checkpoint import save_model
from telechat.config import load_config, to_mapping
from telechat.layers.moe import MoeConfig
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, build_model, initialise
from telechat.tokenizer.train import train_tokenizer
from telechat.train.config import TrainConfig
from telechat.train.run import main as train

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
OURS = {"demo", "demo-2", "sft", "lora", "preference"}
LENGTH = 256  # tokens, for which the tiny models are trained; long recipes double it
AXES = ("dp", "tp", "pp", "cp", "ep")


def names() -> list[str]:
    """The recipes of documented runs."""
    return sorted({path.stem for path in RECIPES.glob("*.yaml")} - OURS)


def scaled(name: str, folder: Path, steps: int, *, max_processes: int = 16) -> dict[str, Any]:
    """A recipe made small: its settings, on a tiny model and rows of its form, with each axis at most two.

    Args:
        folder: receives model, rows and results.
        max_processes: with more than these, `dp` is left out.
    """
    values = to_mapping(load_config(TrainConfig, RECIPES / f"{name}.yaml"))
    layout, model, data = values["parallel"], values["model"], values["data"]
    is_long = model["rope"]["training_length"] is not None
    length = 2 * LENGTH if is_long else LENGTH
    for axis in AXES:
        layout[axis] = min(layout[axis] or 2, 2)
    if math.prod(layout[axis] for axis in AXES) > max_processes:
        layout["dp"] = 1
    if layout["pp_offset"]:
        rounds = layout["pp_interleave"]
        layout["pp_offset"] = [[-1, 0], [0, 0], [0, 1]] if rounds == 3 else [-1, 1]
    if is_long:
        model["rope"]["training_length"] = length
    kind = "mixture" if "a12b" in name else "first" if "Telechat-7B" in model["start_from"] else "dense"
    model["start_from"] = str(tiny_model(folder, kind, layers=6 if layout["pp_interleave"] == 3 else 4))
    data |= {"train_file": str(rows_file(folder, name)), "max_length": length}
    if data["official"]["num_samples"]:
        data["official"] |= {"num_samples": 16, "num_workers": 2}
    micro_batches = 2 * layout["dp"] * layout["ep"] * layout["pp"]
    values["batch"] |= {"micro_batches": micro_batches, "tokens_per_step": micro_batches * length}
    values["schedule"] |= {"total_steps": steps}
    values["schedule"]["warmup_steps"] = min(values["schedule"]["warmup_steps"] or 0, 1)
    values["optimizer"]["lr"] = 1e-2  # random weights move little at the rate of trained ones
    values["output"] |= {"folder": str(folder / name), "log_every": 1, "keep_last": 1}
    values["device"] = "cpu"
    return values


def tiny_model(folder: Path, kind: str, *, layers: int) -> Path:
    """A random model of the generation's form: `first` has a tied head, `mixture` experts."""
    target = folder / f"{kind}-{layers}"
    if target.exists():
        return target
    train_tokenizer(TEXTS * 3, vocab_size=300, out_folder=target)
    config = TeleChatConfig(
        vocab_size=300,
        hidden_size=32,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=4 if kind == "first" else 2,
        ffn_hidden_size=48,
        initializer_range=0.1,
        seq_length=LENGTH,
        tie_word_embeddings=kind == "first",
        rope=RopeSettings(base_length=LENGTH, training_length=LENGTH),
        moe=MoeConfig(num_experts=4, num_experts_per_token=2) if kind == "mixture" else None,
    )
    model = build_model(config)
    initialise(model, seed=1)
    save_model(model, target)
    generation = {"do_sample": False, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 3}
    (target / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return target


def rows_file(folder: Path, name: str) -> Path:
    """Sums, as rows of the form that the recipe's original reads."""
    form = name if name == "telechat2-pretrain" else name.partition("-")[0]
    path = folder / f"rows-{form}.jsonl"
    rows: list[dict[str, Any]] = []
    for number in range(40):
        question, answer = f"{number}+1?", str(number + 1)
        if form == "telechat2-pretrain":
            rows.append({"text": f"{question} {answer}"})
        elif form == "telechat2":
            dialog = [{"role": "user", "content": question}, {"role": "bot", "content": answer}]
            rows.append({"system": "", "dialog": dialog, "multiturn": False, "tool": False})
        else:
            rows.append({"input": f"<_user>{question}", "output": answer})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(name: str, folder: Path, steps: int, max_processes: int, timeout_s: float) -> dict[str, Any]:
    """Train a scaled recipe in forked processes; arguments as of `scaled`.

    Args:
        timeout_s: the longest it may take.

    Returns:
        `processes`, the `losses` of the steps, and `seconds`.

    Raises:
        AssertionError: a process failed or took too long; holds what it wrote.
    """
    values = scaled(name, folder, steps, max_processes=max_processes)
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    size = math.prod(values["parallel"][axis] for axis in AXES)
    start = time.monotonic()
    in_processes(size, lambda: train(str(recipe)), folder / name, timeout_s)
    metrics = (folder / name / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in metrics.splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    return {"processes": size, "losses": losses, "seconds": time.monotonic() - start}


def main(words: list[str] | None = None) -> int:
    """Run recipes one after the other; a line of JSON each. 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--processes", type=int, default=16, help="leave dp out where more would be needed")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="for each recipe")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args(words)
    # Forks share no threads with their parent, so it may not have any.
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for name in args.names or names():
            try:
                found = run(name, folder, args.steps, args.processes, args.timeout)
            except AssertionError as error:
                failed += 1
                print(error, file=sys.stderr, flush=True)
                continue
            print(json.dumps({"recipe": name, **found}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""`make bench-convert`: how fast a checkpoint is converted beside a plain copy, and with how much memory.

Writes a random model of each size, copies it with `cp`, converts it in a process of its own, and prints
bytes per second as a share of the copy's and the peak memory of the process. Sizes are in GB: `--sizes 1 3`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from telechat.checkpoint.formats.convert import convert
from telechat.checkpoint.formats.lazy import zeros
from telechat.checkpoint.formats.table import Checkpoint
from telechat.models import TeleChatConfig, count_parameters, parameter_table

TARGETS = {
    "hf": ("--to", "hf"),
    "llama": ("--to", "llama"),
    "mindspore kv_concat": ("--to", "mindspore"),
    "mindspore qkv_concat": ("--to", "mindspore", "--qkv-concat"),
    "mindspore mp4": ("--to", "mindspore", "--layout", "mp4"),
    "hf, fp32": ("--to", "hf", "--dtype", "float32"),
}
LAYER_BYTES = 2 * (4 * 2048 * 2048 + 3 * 2048 * 8192)


def config_of(num_bytes: float) -> TeleChatConfig:
    """A bf16 model of about that size: more layers, not larger ones."""
    return TeleChatConfig(
        vocab_size=32768,
        hidden_size=2048,
        num_layers=max(1, round((num_bytes - 4 * 32768 * 2048) / LAYER_BYTES)),
        num_heads=16,
        num_kv_heads=16,
        ffn_hidden_size=8192,
    )


def make(folder: Path, config: TeleChatConfig) -> None:
    """A model folder. Zeros would do for time and memory, if no file system left holes: ours writes them."""
    tensors = {p.name: zeros(p.shape, torch.bfloat16) for p in parameter_table(config)}
    convert(Checkpoint(config=config, tensors=tensors, folder=None, format="zeros"), folder, "hf")


def timed(command: list[str]) -> tuple[float, int]:
    """(seconds, peak bytes of memory) of a command, with what it wrote on the disk."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    os.sync()
    return time.monotonic() - started, usage.ru_maxrss * 1024


def measure(folder: Path, size: float, repeats: int) -> list[dict[str, object]]:
    """A row for each target; the best of several runs, as for the copy."""
    config = config_of(size * 1e9)
    num_bytes = 2 * count_parameters(config)
    make(folder / "model", config)
    rows = []
    copy = ["cp", "-r", str(folder / "model"), str(folder / "out")]
    copied = min(_run(copy, folder)[0] for _ in range(repeats))
    for name, words in TARGETS.items():
        start = [sys.executable, "-m", "telechat", "checkpoint", "convert"]
        command = [*start, str(folder / "model"), str(folder / "out"), *words]
        runs = [_run(command, folder) for _ in range(repeats)]
        seconds = min(run[0] for run in runs)
        peak = max(run[1] for run in runs)
        row = {"gigabytes": num_bytes / 1e9, "target": name, "seconds": seconds, "peak_bytes": peak}
        rows.append({**row, "share_of_cp": copied / seconds})
        print(
            f"{num_bytes / 1e9:5.2f} GB  {name:<22} {num_bytes / seconds / 1e6:7.0f} MB/s  "
            f"{copied / seconds:5.2f} of cp  peak {peak / 1e6:6.0f} MB",
            flush=True,
        )
    shutil.rmtree(folder / "model")
    return rows


def _run(command: list[str], folder: Path) -> tuple[float, int]:
    result = timed(command)
    shutil.rmtree(folder / "out")
    return result


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1.0, 3.0, 6.0], help="GB (default: 1 3 6)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each; the best counts (default: 2)")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for size in args.sizes:
            rows += measure(Path(name), size, args.repeats)
    if args.json:
        args.json.write_text(json.dumps({"command": sys.argv, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

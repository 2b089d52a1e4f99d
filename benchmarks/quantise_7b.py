"""`make bench-quantise`: GPTQ of blocks of a 7B: memory, seconds per block, and a killed run that goes on.

    python -m benchmarks.quantise_7b --folder /tmp

Writes a folder of random bf16 weights with the width and vocabulary of TeleChat-7B but four blocks, and
quantises it by `telechat quantize run` in a process of its own, with 128 rows of 512 tokens. Prints the
process's peak memory and the seconds per block, and what 30 blocks would take: as much memory, since one
block is held at a time, which the memory after each block shows. Then does it again, kills that run in the
middle, gives the same command once more and compares the two folders byte by byte. All folders (7 GB) are
deleted afterwards. A figure never fails the run; folders that differ do.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.harness import ROOT, say

MODULE = "benchmarks.quantise_7b"
MEMORY_GIB = 16
ALL_BLOCKS = 30
_SHARD_BYTES = 1_000_000_000
_LOOK_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Run:
    """What one run of the command took.

    Attributes:
        seconds: from start to end, or to where it was killed.
        peak_bytes: the most memory that the process held.
        blocks: second at which each block was done, by its number; blocks of an earlier run are missing.
        resident_bytes: memory held at those moments.
        exit_code: 0, or minus the signal.
    """

    seconds: float
    peak_bytes: int
    blocks: dict[int, float]
    resident_bytes: dict[int, int]
    exit_code: int


def make_folder(folder: Path, preset_name: str, num_blocks: int, vocab_size: int | None) -> int:
    """A random bf16 model with the demo model's tokenizer; returns its bytes."""
    import torch

    from telechat.checkpoint.save import folder_config, parameter_bytes, write_folder
    from telechat.models import parameter_table, preset

    config = preset(preset_name).replace(num_layers=num_blocks)
    if vocab_size is not None:
        config = config.replace(vocab_size=vocab_size)
    table = {parameter.name: parameter for parameter in parameter_table(config)}
    generator = torch.Generator().manual_seed(0)
    # Random numbers by the gigabyte take minutes: some millions, repeated.
    some_values = (torch.randn(2**22 + 1, generator=generator) * 0.02).bfloat16()

    def content(names: list[str]) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            parameter = table[name]
            if parameter.kind in ("norm", "bias"):
                tensors[name] = torch.full(parameter.shape, float(parameter.kind == "norm")).bfloat16()
                continue
            times = -(-parameter.size // len(some_values))
            values = some_values.repeat(times)[: parameter.size]
            # The embedding's rows are the residual stream: of the size that trained ones have.
            tensors[name] = values.view(parameter.shape) * (50 if parameter.kind == "embedding" else 1)
        return tensors

    sizes = parameter_bytes(config, torch.bfloat16, None)
    raw = folder_config(config, torch.bfloat16, None)
    write_folder(folder, raw, sizes, content, max_shard_bytes=_SHARD_BYTES)
    demo = _demo_folder()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(demo / name, folder / name)
    return sum(sizes.values())


def write_rows(path: Path, num_rows: int, length: int) -> None:
    """Texts of random words, a line each, of at least so many tokens."""
    from telechat.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(_demo_folder())
    choose = random.Random(0)
    lines = []
    for _ in range(num_rows):
        words = tokenizer.decode(choose.choices(range(300, tokenizer.vocab_size), k=2 * length))
        line = " ".join(words.split())
        assert len(tokenizer.encode(line)) >= length, "random words must give enough tokens"
        lines.append(line)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _demo_folder() -> Path:
    from telechat.checkpoint import resolve_model

    return resolve_model("demo")


def quantise(
    model: Path, out: Path, rows: Path, args: argparse.Namespace, *, kill_after: int | None = None
) -> Run:
    """Run the command, watching which blocks are done.

    Args:
        kill_after: kill it in the middle of the block that follows so many.
    """
    words = [sys.executable, "-m", "telechat", "quantize", "run", str(model), str(out), "--method", "gptq"]
    words += ["--bits", str(args.bits), "--calib", str(rows)]
    words += ["--calib-rows", str(args.rows), "--calib-length", str(args.length)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    unfinished = out.with_name(f"{out.name}.unfinished")
    done, resident, kill_at = {}, {}, float("inf")
    before = set(_blocks_done(unfinished))
    start = time.perf_counter()
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        now = time.perf_counter() - start
        for number in _blocks_done(unfinished):
            if number not in before and number not in done:
                done[number], resident[number] = now, _resident_bytes(process.pid)
                say(f"  block {number} at {now:.0f} s, {resident[number] / 2**30:.2f} GiB")
                if kill_after is not None and len(done) == kill_after:
                    kill_at = now + now / kill_after / 2
        if now >= kill_at:
            process.kill()
        time.sleep(_LOOK_EVERY)
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    return Run(time.perf_counter() - start, usage.ru_maxrss * 1024, done, resident, process.returncode)


def _blocks_done(unfinished: Path) -> list[int]:
    try:
        return [int(path.stem.removeprefix("block-")) for path in unfinished.glob("block-*.json")]
    except FileNotFoundError:  # not there yet, or just now completed
        return []


def _resident_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:  # it ended just now
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def digests(folder: Path) -> dict[str, str]:
    """Of every file, but the report, which holds times."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != "quantize_report.json"
    }


def layers_of_a_block(folder: Path) -> dict[str, float]:
    """Seconds of each layer's rounding, without its inputs: medians over blocks."""
    layers = json.loads((folder / "quantize_report.json").read_text(encoding="utf-8"))["layers"]
    seconds: dict[str, list[float]] = {}
    for layer in layers:
        seconds.setdefault(layer["name"].split(".", 3)[3], []).append(layer["seconds"])
    return {name: statistics.median(values) for name, values in seconds.items()}


def figures_of(run: Run) -> dict[str, Any]:
    """What is printed of an uninterrupted run."""
    times = [run.blocks[number] for number in sorted(run.blocks)]
    each = [later - earlier for earlier, later in itertools.pairwise(times)] or times
    seconds = statistics.median(each)
    rest = run.seconds - times[-1]
    return {
        "peak_gib": round(run.peak_bytes / 2**30, 2),
        "resident_gib_after_blocks": [round(run.resident_bytes[n] / 2**30, 2) for n in sorted(run.blocks)],
        "seconds_to_first_block": round(times[0], 1),
        "seconds_per_block": round(seconds, 1),
        "seconds_to_write": round(rest, 1),
        "seconds": round(run.seconds, 1),
        "minutes_of_30_blocks": round((times[0] + (ALL_BLOCKS - 1) * seconds + rest) / 60, 1),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Make the folder, quantise it, and again with a kill in between."""
    with tempfile.TemporaryDirectory(prefix="telechat-quantise-", dir=args.folder) as parent:
        model, rows = Path(parent) / "model", Path(parent) / "rows.txt"
        size = make_folder(model, args.preset, args.blocks, args.vocab)
        write_rows(rows, args.rows, args.length)
        say(
            f"{args.blocks} blocks of {args.preset}, {size / 1e9:.1f} GB; "
            f"{args.rows} rows of {args.length} tokens"
        )
        whole = quantise(model, Path(parent) / "whole", rows, args)
        if whole.exit_code:
            raise SystemExit(f"the command failed with {whole.exit_code}")
        figures = figures_of(whole)
        figures["seconds_of_layers"] = layers_of_a_block(Path(parent) / "whole")
        figures["goal"] = {"peak_gib": MEMORY_GIB}
        figures["reached"] = figures["peak_gib"] < MEMORY_GIB
        if not args.no_kill:
            figures["killed"] = killed_and_resumed(model, Path(parent), rows, args)
        return figures


def killed_and_resumed(model: Path, parent: Path, rows: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Kill a run in the middle, repeat it, compare with `whole`."""
    out, half = parent / "resumed", max(1, args.blocks // 2)
    say(f"again, killed after {half} blocks")
    killed = quantise(model, out, rows, args, kill_after=half)
    left = sorted(path.name for path in parent.iterdir() if path.name.startswith("resumed"))
    say("the same command once more")
    second = killed if out.exists() else quantise(model, out, rows, args)  # tiny models are too fast
    return {
        "killed_after_seconds": round(killed.seconds, 1),
        "exit_code_of_killed": killed.exit_code,
        "left_by_killed": left,
        "blocks_of_first_run": len(killed.blocks),
        "blocks_of_second_run": len(second.blocks),
        "seconds_of_second_run": round(second.seconds, 1),
        "same_files": out.exists() and digests(out) == digests(parent / "whole"),
    }


def main(words: Sequence[str]) -> int:
    """Measure, print, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the models are made (default: $TMPDIR)"
    )
    parser.add_argument("--preset", default="telechat-7b")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=None, help="a smaller vocabulary than the preset's")
    parser.add_argument("--bits", type=int, choices=(2, 4, 8), default=4)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--no-kill", action="store_true", help="no second run")
    parser.add_argument("--no-report", action="store_true", help="print the figures only")
    args = parser.parse_args(words)
    report = record.record(MODULE, words)
    report["figures"] = measure(args)
    print(json.dumps(report["figures"], indent=2))
    if not args.no_report:
        record.write("quantise-7b", report)
    return 0 if report["figures"].get("killed", {}).get("same_files", True) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

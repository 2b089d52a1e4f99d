"""`make bench-train`: training beside Hugging Face's Trainer, in steady state.

    python -m benchmarks.train                 the CPU's rows, about 25 minutes on two cores
    python -m benchmarks.train --quick         the same rows with fewer steps and rounds
    python -m benchmarks.train --accelerator   a 7B on an accelerator: share of its matrix products' rate
    python -m benchmarks.train --list

Same widths, rows, format (bf16 products under autocast, fp32 weights), optimiser (fused AdamW) and clipping.
Both loops run in turns, each timed from one step to another of a running loop; starts are not counted. Prints
a table and writes JSON to benchmarks/results. A figure never fails the run.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import record
from benchmarks.gpu import accelerator_facts, run_group
from benchmarks.harness import say
from benchmarks.rows import Group, WorkerPlan
from benchmarks.table import Outcome, Place, Row, lines

MODULE = "benchmarks.train"
OURS, PEER = "train_telechat", "train_transformers"
# Vocabulary -> what tokens/s and peak memory are to reach against the Trainer; None where none was set.
AGAINST_TRAINER: dict[str, tuple[float, float | None]] = {"32k": (1.1, None), "131k": (1.4, 0.4)}
# How ours saves memory where memory is compared; its numbers stay bitwise the same.
MEMORY_OPTIONS = ("--recompute", "selective")
# Share of the measured rate of matrix products that a 7B is to reach.
ACCELERATOR_GOAL = 0.5


def against_trainer(shape: str, warmup: int, steps: int, *, is_compiled: bool) -> Group:
    """Ours and the Trainer on one shape, both compiled or neither."""
    options = ("--shape", shape, *(("--compile",) if is_compiled else ()))
    suffix = ", both compiled" if is_compiled else ""
    ours, peer = Place("train", "ours"), Place("train", "Trainer")
    speed, memory = AGAINST_TRAINER[shape]
    saving = () if memory is None else MEMORY_OPTIONS
    return Group(
        f"vocabulary {shape}{suffix}",
        {"ours": WorkerPlan(OURS, (*options, *saving)), "Trainer": WorkerPlan(PEER, options)},
        {"train": ("train", {"warmup": warmup, "steps": steps})},
        [
            Row(f"{shape} tokens/s to the Trainer{suffix}", ours, peer, goal=speed),
            Row(
                f"{shape} peak memory to the Trainer{suffix}",
                ours,
                peer,
                key="peak_bytes",
                goal=memory,
                lower_is_better=True,
            ),
        ],
    )


def on_accelerator(shape: str, warmup: int, steps: int, *, is_lora: bool) -> Group:
    """A 7B alone: all weights, or an adapter."""
    kind = "LoRA" if is_lora else "full"
    options = ("--shape", shape, "--device", "auto", "--precision", "bf16-pure", "--recompute", "selective")
    ours = Place("train", "ours")
    return Group(
        f"{shape} {kind}",
        {"ours": WorkerPlan(OURS, (*options, "--lora") if is_lora else options)},
        {"train": ("train", {"warmup": warmup, "steps": steps})},
        [
            Row(f"{shape} {kind}, share of matmul rate", ours, key="mfu", unit="%", goal=ACCELERATOR_GOAL),
            Row(f"{shape} {kind}, speed", ours, unit="tokens/s"),
            Row(f"{shape} {kind}, peak memory", ours, key="peak_bytes", factor=2.0**-30, unit="GiB"),
        ],
    )


def all_groups(*, is_quick: bool, is_accelerator: bool) -> list[Group]:
    """Groups in the order they are run."""
    warmup, steps = (1, 1) if is_quick else (2, 4)
    if is_accelerator:
        shapes = ("7B-2048", "7B-8192")
        return [on_accelerator(s, warmup, steps, is_lora=lora) for lora in (True, False) for s in shapes]
    eager = [against_trainer(shape, warmup, steps, is_compiled=False) for shape in AGAINST_TRAINER]
    return [*eager, against_trainer("32k", warmup, steps, is_compiled=True)]


def main(words: Sequence[str]) -> int:
    """Run what was chosen; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", default=["*"], help="names, with * and ?")
    parser.add_argument("--rounds", type=int, help="counted rounds; default 5, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds; not for publishing")
    parser.add_argument("--accelerator", action="store_true", help="the rows of an accelerator instead")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    args = parser.parse_args(words)
    rounds = args.rounds if args.rounds is not None else 1 if args.quick else 5
    if rounds < 1:
        parser.error("--rounds must be at least 1")

    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in args.rows)

    every = all_groups(is_quick=args.quick, is_accelerator=args.accelerator)
    groups = [chosen for chosen in (group.selected(wanted) for group in every) if chosen.rows]
    if not groups:
        parser.error(f"no row is called {' or '.join(args.rows)}; see --list")
    if args.list:
        print("\n".join(row.name for group in groups for row in group.rows))
        return 0
    facts = accelerator_facts() if args.accelerator else {}
    if facts is None:
        say("There is no accelerator that torch can use here; nothing was measured.")
        return 1
    start = time.monotonic()
    head = record.record(MODULE, words, rounds=rounds, quick=args.quick)
    head["machine"] |= facts
    outcomes: list[Outcome] = []
    workers: dict[str, Any] = {}
    name = "train-gpu" if args.accelerator else "train"
    for group in groups:
        done, workers[group.name] = run_group(group, rounds)
        outcomes += done
        print("\n".join(lines(done)), flush=True)
        # After every group, so that stopping a later one loses nothing.
        minutes = round((time.monotonic() - start) / 60, 1)
        report = {**head, "minutes": minutes, "rows": [each.entry() for each in outcomes], "workers": workers}
        record.write(name + ("-quick" if args.quick else ""), report)
    print("\n".join(["", *lines(outcomes), "", f"{minutes} minutes, {rounds} rounds"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

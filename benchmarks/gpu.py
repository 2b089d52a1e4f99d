"""`make bench-gpu`: decoding, prefill and attention on an accelerator, beside transformers and flash-attn.

    python -m benchmarks.gpu                   all rows of a 7B, some minutes
    python -m benchmarks.gpu --quick           the same rows, shorter and three rounds
    python -m benchmarks.gpu --rows "int4*" "*prefill*"
    python -m benchmarks.gpu --list

Prints a table, writes JSON and a chart to benchmarks/results. Never fails because of a figure. Where there is
no accelerator it says so and ends with 1.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import chart, record
from benchmarks.harness import WorkerSpec, measure, running, say
from benchmarks.rows import PROMPT, Group, WorkerPlan
from benchmarks.shapes import SHAPES, Shape
from benchmarks.table import Outcome, Place, Row, lines, outcome

MODULE = "benchmarks.gpu"
OURS, PEER, KERNELS = "gpu_telechat", "gpu_transformers", "gpu_kernels"
# Share of the bandwidth that decoding one sequence is to reach.
GOALS = {"bf16": 0.85, "int8": None, "int4": 0.65}
PEERS = {
    "transformers": ("--attention", "sdpa"),
    "transformers compiled": ("--attention", "sdpa", "--static"),
    "transformers flash-attn": ("--attention", "flash_attention_2"),
}
ATTENTION = {
    "torch": ("--form", "torch"),
    "flash-attn": ("--form", "flash_attn"),
    "flash-attn 3": ("--form", "flash_attn_interface"),
}
Cases = dict[str, tuple[str, Mapping[str, object]]]


def cases(steps: int) -> Cases:
    """What is asked of an engine."""
    return {
        "memory": ("read", {}),
        "decode b1": ("decode", {"batch": 1, "prompt": PROMPT, "steps": steps}),
        "decode b64": ("decode", {"batch": 64, "prompt": PROMPT, "steps": steps // 2}),
        "prefill 2048": ("prefill", {"prompt": 2048}),
    }


def engine_group(shape: Shape, weight_format: str, steps: int) -> Group:
    """Ours in one format beside the bandwidth of memory; in bf16 beside transformers as well."""
    workers = {
        "memory": WorkerPlan(KERNELS),
        weight_format: WorkerPlan(OURS, ("--shape", shape.name, "--format", weight_format)),
    }
    rows = [
        Row(
            f"{weight_format} decode b1, share of memory bandwidth",
            Place("decode b1", weight_format),
            Place("memory", "memory"),
            factor=shape.bytes_per_token(weight_format) / 1e9,
            unit="%",
            goal=GOALS[weight_format],
        )
    ]
    timed = ("decode b1", "decode b64", "prefill 2048")
    if weight_format == "bf16":
        for name, options in PEERS.items():
            workers[name] = WorkerPlan(PEER, ("--shape", shape.name, *options))
            rows += [Row(f"bf16 {case} to {name}", Place(case, "bf16"), Place(case, name)) for case in timed]
    else:
        rows += [
            Row(f"{weight_format} {case}", Place(case, weight_format), unit="tokens/s") for case in timed[1:]
        ]
    return Group(f"{shape.name} {weight_format}", workers, cases(steps), rows)


def attention_group() -> Group:
    """Attention by itself."""
    steps: Cases = {
        "attention, decode b64 at 2048": ("attention", {"batch": 64, "new": 1, "length": 2048}),
        "attention, decode b1 at 4096": ("attention", {"batch": 1, "new": 1, "length": 4096}),
        "attention, 4 prompts of 2048": ("attention", {"batch": 4, "new": 2048, "length": 2048}),
    }
    workers = {"ours": WorkerPlan(KERNELS, ("--form", "ours"))}
    workers |= {name: WorkerPlan(KERNELS, options) for name, options in ATTENTION.items()}
    rows = [
        Row(f"{case} to {name}", Place(case, "ours"), Place(case, name))
        for case in steps
        for name in ATTENTION
    ]
    return Group("attention", workers, steps, rows)


def all_groups(shape: Shape, steps: int) -> list[Group]:
    """Groups in the order they are run."""
    return [*(engine_group(shape, name, steps) for name in GOALS), attention_group()]


def run_group(group: Group, rounds: int) -> tuple[list[Outcome], dict[str, Any]]:
    """Measure a group. Returns its rows' outcomes, and what its workers say about themselves."""
    say(group.name)
    specs = {
        name: WorkerSpec([sys.executable, "-m", f"benchmarks.workers.{plan.kind}", *plan.options])
        for name, plan in group.workers.items()
    }
    with running(specs) as (workers, unfit):
        reasons = dict(unfit)
        results = measure(
            workers,
            group.turns(),
            rounds=rounds,
            on_failure=lambda case, name, why: reasons.setdefault(name, f"{case}: {why}"),
        )
        about = {name: worker.about for name, worker in workers.items()}
    return [outcome(row, results, reasons) for row in group.rows], about


def accelerator_facts() -> dict[str, Any] | None:
    """The accelerator, for the report; None where there is none."""
    import torch

    from telechat.device import accelerator_kernels, device_name, memory_info, resolve_device

    device = resolve_device("auto")
    if device.type == "cpu":
        return None
    memory = memory_info(device)
    return {
        "accelerator": device_name(device),
        "accelerator_memory_gib": round(memory.total_bytes / 2**30, 1) if memory else None,
        "accelerator_build": accelerator_kernels(),
        "torch": torch.__version__,
    }


def main(words: Sequence[str]) -> int:
    """Run what was chosen; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", default=["*"], help="names, with * and ?")
    parser.add_argument("--rounds", type=int, help="counted rounds; default 5, with --quick 3")
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds; not for publishing")
    parser.add_argument("--shape", choices=SHAPES, default="7B", help="default 7B, 16 GB in bf16")
    parser.add_argument("--name", default="gpu", help="of the files written; default gpu")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    args = parser.parse_args(words)
    rounds = args.rounds if args.rounds is not None else 3 if args.quick else 5
    if rounds < 1:
        parser.error("--rounds must be at least 1")

    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in args.rows)

    every = all_groups(SHAPES[args.shape], steps=32 if args.quick else 128)
    groups = [chosen for chosen in (group.selected(wanted) for group in every) if chosen.rows]
    if not groups:
        parser.error(f"no row is called {' or '.join(args.rows)}; see --list")
    if args.list:
        print("\n".join(row.name for group in groups for row in group.rows))
        return 0
    facts = accelerator_facts()
    if facts is None:
        say("There is no accelerator that torch can use here; nothing was measured.")
        return 1
    start = time.monotonic()
    head = record.record(MODULE, words, rounds=rounds, quick=args.quick, shape=args.shape)
    head["machine"] |= facts
    outcomes: list[Outcome] = []
    workers: dict[str, Any] = {}
    for group in groups:
        done, workers[group.name] = run_group(group, rounds)
        outcomes += done
        print("\n".join(lines(done)), flush=True)
    minutes = round((time.monotonic() - start) / 60, 1)
    report = {**head, "minutes": minutes, "rows": [each.entry() for each in outcomes], "workers": workers}
    path = record.write(args.name + ("-quick" if args.quick else ""), report)
    Path(path.with_suffix(".svg")).write_text(chart.svg(report), encoding="utf-8")
    print("\n".join(["", *lines(outcomes), "", f"{minutes} minutes, {rounds} rounds"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`make bench-decode`: decoding, prefill and serving beside the peers, in one run.

    python -m benchmarks.decode                       all rows, about 30 minutes on two cores
    python -m benchmarks.decode --quick               the same rows, shorter and three rounds, about 8 minutes
    python -m benchmarks.decode --rows "M int4*" "*prefill*"
    python -m benchmarks.decode --list

Prints a table, writes JSON and a chart to benchmarks/results. Never fails because of a figure: the exit code
says only whether the bench ran.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import chart, record
from benchmarks.harness import WorkerSpec, measure, running, say
from benchmarks.peers.build import environment_folder, is_built, peer_python
from benchmarks.rows import LLAMA, MEMORY, OURS, TORCH, TRANSFORMERS, ZIGLANG, Group, WorkerPlan, all_groups
from benchmarks.table import Outcome, lines, outcome
from telechat.ops.cpu.build import ziglang_compiler

MODULE = "benchmarks.decode"


def worker_spec(
    plan: WorkerPlan, *, threads: int, empty_folder: str, ours_module: str = "telechat"
) -> WorkerSpec:
    """How to start a planned worker here.

    Args:
        empty_folder: a cache folder without kernels.
        ours_module: worker that stands for ours: `telechat` (the engine) or `kernels` (without it).
    """
    common = ("--threads", str(threads))
    stored = ("--models", str(environment_folder() / "models"))
    environment = {"OMP_NUM_THREADS": str(threads)}
    ours = [sys.executable, "-m", f"benchmarks.workers.{ours_module}"]
    if plan.kind == MEMORY:
        return WorkerSpec([sys.executable, "-m", "benchmarks.workers.memory"], environment)
    if plan.kind == OURS:
        if ours_module == "telechat":
            ours += stored
        return WorkerSpec([*ours, *plan.options, *common], environment)
    if plan.kind == ZIGLANG:
        compiler = ziglang_compiler()
        ours = [sys.executable, "-m", "benchmarks.workers.telechat", *stored]
        built = {**environment, "CC": shlex.join(compiler or []), "TELECHAT_CACHE": f"{empty_folder}/ziglang"}
        unfit = None if compiler else "ziglang is not installed; run: pip install 'telechat[compiler]'"
        return WorkerSpec([*ours, *plan.options, *common], built, unfit)
    if plan.kind == TORCH:  # neither a compiler nor that package, and nothing built before
        ours = [sys.executable, "-m", "benchmarks.workers.telechat", *stored]
        without = {**environment, "CC": "/no/compiler", "TELECHAT_CACHE": empty_folder}
        return WorkerSpec([*ours, *plan.options, *common, "--without-kernels"], without)
    if plan.kind == TRANSFORMERS:
        module = "benchmarks.workers.transformers_peer"
        return WorkerSpec([sys.executable, "-m", module, *plan.options, *common], environment)
    assert plan.kind == LLAMA, plan.kind
    command = [str(peer_python()), "-m", "benchmarks.workers.llamacpp", *stored, *plan.options, *common]
    unfit = None if is_built() else "not built here; run: make bench-peers"
    return WorkerSpec(command, environment, unfit)


def run_group(
    group: Group, *, rounds: int, threads: int, empty_folder: str, ours_module: str
) -> tuple[list[Outcome], dict[str, Any]]:
    """Measure a group. Returns its rows' outcomes, and what its workers say about themselves."""
    say(f"{group.name}")
    specs = {
        name: worker_spec(plan, threads=threads, empty_folder=empty_folder, ours_module=ours_module)
        for name, plan in group.workers.items()
    }
    with running(specs) as (workers, unfit):
        about = {name: worker.about for name, worker in workers.items()}
        reasons = dict(unfit)
        results = measure(
            workers,
            group.turns(),
            rounds=rounds,
            on_failure=lambda case, name, why: reasons.setdefault(name, f"{case}: {why}"),
        )
    return [outcome(row, results, reasons) for row in group.rows], about


def main(words: Sequence[str]) -> int:
    """Run what was chosen; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", default=["*"], help="names, with * and ?")
    parser.add_argument("--rounds", type=int, help="counted rounds; default 5, with --quick 3")
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds; not for publishing")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--kernels", action="store_true", help="our kernels by themselves, without the engine around them"
    )
    parser.add_argument("--name", default="decode", help="of the files written; default decode")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    args = parser.parse_args(words)
    rounds = args.rounds if args.rounds is not None else 3 if args.quick else 5
    if rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads must be at least 1")

    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in args.rows)

    groups = all_groups(steps=8 if args.quick else 24)
    if args.kernels:
        groups = [group.without_engine() for group in groups]
    if "amx_int8" not in record.machine()["flags"]:
        say("goals beside llama.cpp are those of processors with AMX; this one has none: figures only")
        groups = [group.without_goals_against(LLAMA) for group in groups]
    groups = [group.selected(wanted) for group in groups]
    groups = [group for group in groups if group.rows]
    if not groups:
        parser.error(f"no row is called {' or '.join(args.rows)}; see --list")
    if args.list:
        print("\n".join(row.name for group in groups for row in group.rows))
        return 0
    start = time.monotonic()
    outcomes: list[Outcome] = []
    workers: dict[str, Any] = {}
    head = record.record(MODULE, words, rounds=rounds, threads=args.threads, quick=args.quick)
    with tempfile.TemporaryDirectory(prefix="no-kernels-") as empty_folder:
        for group in groups:
            done, about = run_group(
                group,
                rounds=rounds,
                threads=args.threads,
                empty_folder=empty_folder,
                ours_module="kernels" if args.kernels else "telechat",
            )
            outcomes += done
            workers[group.name] = about
            print("\n".join(lines(done)), flush=True)
    minutes = round((time.monotonic() - start) / 60, 1)
    report = {**head, "minutes": minutes, "rows": [each.entry() for each in outcomes], "workers": workers}
    path = record.write(args.name + ("-quick" if args.quick else ""), report)
    Path(path.with_suffix(".svg")).write_text(chart.svg(report), encoding="utf-8")
    print("\n".join(["", *lines(outcomes), "", f"{minutes} minutes, {rounds} rounds"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

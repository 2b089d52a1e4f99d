"""`make bench-quality`: what each format loses, beside rounding to nearest and llm-compressor's GPTQ.

    python -m benchmarks.quantise            three models, of which the first run trains two: half an hour
    python -m benchmarks.quantise --models text --no-tasks
    python -m benchmarks.quantise --no-peer  without llm-compressor, which needs the package index once

Perplexity and KL divergence on held-out rows, for the demo model and the two of `benchmarks.quantise_models`.
Every method sees the same calibration rows and changes the same layers; the head stays in floats. The demo
model answers its tasks through the engine besides. Prints a table and writes JSON and a chart to
benchmarks/results. A figure never fails the run.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.harness import say
from benchmarks.peers import quantisation as peer
from benchmarks.quantise_chart import svg
from benchmarks.quantise_measure import (
    Losses,
    load,
    losses,
    peer_weights,
    rounded,
    with_weights,
)
from benchmarks.quantise_models import FOLDER, RECIPES, train, write_rows
from telechat.checkpoint.hub import demo_folder
from telechat.data.sequences import Encoded
from telechat.engine import LLM
from telechat.engine.loading import KvCacheDtype
from telechat.evals.comparison import CachedPredictions, Predict, log_probabilities
from telechat.evals.tasks import demo_verdicts, scores
from telechat.models import TeleChatModel
from telechat.quant import Calibration, Int8Config, QuantizeConfig, quantize
from telechat.quant.calibration import from_files, read_marked
from telechat.tokenizer import load_tokenizer

MODULE = "benchmarks.quantise"
DEMO = "demo"
MODELS = (DEMO, *(recipe.name for recipe in RECIPES))
GROUP_SIZE = 128
LENGTH = 512
# Marked tokens of a row of the demo model; there are some more.
DEMO_TOKENS = 40
CALIBRATION_ROWS = 128
FORMATS: dict[str, QuantizeConfig | Int8Config] = {
    "GPTQ int4": QuantizeConfig(method="gptq", bits=4, group_size=GROUP_SIZE),
    "GPTQ int4, act-order": QuantizeConfig(method="gptq", bits=4, group_size=GROUP_SIZE, desc_act=True),
    "GPTQ int8": QuantizeConfig(method="gptq", bits=8, group_size=GROUP_SIZE),
    "W8A8": Int8Config(anti_method="m2", act_method=3),
}
ROUNDED = {"round to nearest int4": 4, "round to nearest int8": 8}
CACHES: dict[str, KvCacheDtype] = {"int8 cache": "int8", "int4 cache": "int4"}
FLOAT, PEER = "float", "llm-compressor GPTQ int4"
# Most that may be lost, as a share of the perplexity.
LIMITS = {"GPTQ int8": 0.001, "W8A8": 0.005, "int8 cache": 0.001}
# Most that the share of right answers may fall.
TASK_LIMITS = {"GPTQ int8": 0.01, "GPTQ int4": 0.03}


@dataclass(frozen=True)
class Subject:
    """A model with its rows.

    Attributes:
        name, folder: the model.
        rows: held out; what is marked counts.
        calibration: rows that the model was trained on.
    """

    name: str
    folder: Path
    rows: tuple[Encoded, ...]
    calibration: Calibration

    @classmethod
    def of(cls, name: str, num_tokens: int) -> Subject:
        """By the name of the model, which is trained already."""
        folder = demo_folder() if name == DEMO else FOLDER / name / "model"
        tokenizer = load_tokenizer(folder)
        held_out = read_marked([FOLDER / f"{name}-test.jsonl"], tokenizer, length=LENGTH)
        rows, left = [], num_tokens
        for row in held_out:
            marked = sum(row.learnt[1:])
            if marked and left > 0:
                rows.append(row)
                left -= marked
        train_file = FOLDER / f"{name}-train.jsonl"
        calibration = from_files([train_file], tokenizer, num_rows=CALIBRATION_ROWS, length=LENGTH)
        return cls(name, folder, tuple(rows), calibration)


@dataclass(frozen=True)
class Goal:
    """A figure, the most it may be, and one standard error of how far apart they are."""

    name: str
    value: float
    limit: float
    error: float

    @property
    def verdict(self) -> str:
        """`reached`, `MISSED`, or `within luck`: above the limit by less than two standard errors."""
        if self.value <= self.limit:
            return "reached"
        return "within luck" if self.value - self.limit < 2 * self.error else "MISSED"

    def entry(self) -> dict[str, Any]:
        """For the report."""
        return {**asdict(self), "verdict": self.verdict}


def measure(subject: Subject, work: Path, *, has_peer: bool) -> dict[str, Losses]:
    """Every format of one model; the quantised folders are left in `work`."""
    made: dict[str, Predict] = {}

    def add(name: str, make: Callable[[], TeleChatModel]) -> None:
        start = time.monotonic()
        made[name] = partial(log_probabilities, make())
        say(f"{subject.name}: {name} in {time.monotonic() - start:.0f} s")

    def quantised(name: str) -> TeleChatModel:
        out = work / f"{subject.name} {name}"
        return load(quantize(subject.folder, out, FORMATS[name], calibration=subject.calibration))

    def by_peer() -> TeleChatModel:
        llama = work / f"{subject.name}-llama"
        words = ["export", "llama", str(subject.folder), str(llama), "--dtype", "float32"]
        subprocess.run([sys.executable, "-m", "telechat", *words], check=True, capture_output=True)
        file = peer.quantise(llama, subject.calibration.rows, work / f"{subject.name}-peer.safetensors")
        model = load(subject.folder)
        return with_weights(model, peer_weights(model, file))

    add(FLOAT, lambda: load(subject.folder))
    for name, bits in ROUNDED.items():
        add(name, partial(rounded, subject.folder, bits, GROUP_SIZE))
    for name in FORMATS:
        add(name, partial(quantised, name))
    for name, dtype in CACHES.items():
        made[name] = CachedPredictions(load(subject.folder), LENGTH, dtype)
    if has_peer:
        add(PEER, by_peer)
    start = time.monotonic()
    found = losses(made, subject.rows, FLOAT)
    say(f"{subject.name}: {len(subject.rows)} rows by {len(made)} models in {time.monotonic() - start:.0f} s")
    return found


def goals(found: dict[str, Losses]) -> list[Goal]:
    """What the figures of one model were to be. Of perplexities the logarithms are compared."""
    plain, ours, nearest = found[FLOAT], found["GPTQ int4"], found["round to nearest int4"]
    lost = {name: each.less(plain) for name, each in found.items()}
    made = [
        Goal(f"perplexity, {name}", lost[name][0], limit, lost[name][1]) for name, limit in LIMITS.items()
    ]
    half = Losses(
        tuple((a + b) / 2 for a, b in zip(plain.nll, nearest.nll, strict=True)), (), plain.num_tokens
    )
    limit, error = half.less(plain)[0], ours.less(half)[1]
    made.append(
        Goal("perplexity, GPTQ int4, half of rounding to nearest", lost["GPTQ int4"][0], limit, error)
    )
    error = ours.kl_less(nearest, 0.5)[1]
    made.append(Goal("KL, GPTQ int4, half of rounding to nearest", ours.mean_kl, nearest.mean_kl / 2, error))
    if PEER in found:
        error = ours.less(found[PEER])[1]
        made.append(Goal("perplexity, GPTQ int4, llm-compressor", lost["GPTQ int4"][0], lost[PEER][0], error))
        error = ours.kl_less(found[PEER])[1]
        made.append(Goal("KL, GPTQ int4, llm-compressor", ours.mean_kl, found[PEER].mean_kl, error))
    return made


def tasks(work: Path, rows_per_task: int) -> dict[str, Any]:
    """The demo model's answers to its tasks, in floats and in each format, by the engine."""
    plain = demo_verdicts(LLM(DEMO), rows_per_task)
    found: dict[str, Any] = {}
    for name in FORMATS:
        every = scores(plain, demo_verdicts(LLM(work / f"{DEMO} {name}"), rows_per_task))
        whole = every[0]
        low, high = whole.change_interval
        say(f"tasks, {name}: {whole.num_right} of {whole.num_rows}, {low:+.2%} to {high:+.2%}")
        found[name] = {"tasks": [asdict(each) for each in every], "goals": []}
        if name in TASK_LIMITS:
            error = (high - low) / 4  # the interval holds 95 %
            goal = Goal(f"fall of right answers, {name}", -whole.change, TASK_LIMITS[name], error)
            found[name]["goals"].append(goal.entry())
    return found


def report_of(subject: Subject, found: dict[str, Losses]) -> dict[str, Any]:
    """What is written of one model."""
    counted = {
        "rows": len(subject.rows),
        "tokens": sum(found[FLOAT].num_tokens),
        "calibration_rows": len(subject.calibration.rows),
        "calibration_tokens": subject.calibration.num_tokens,
    }
    formats = {name: each.entry(found[FLOAT]) for name, each in found.items()}
    return {**counted, "formats": formats, "goals": [goal.entry() for goal in goals(found)]}


def lines(report: dict[str, Any]) -> list[str]:
    """The table for the terminal."""
    said = []
    for name, model in report["models"].items():
        said.append(f"{name}: {model['rows']} rows, {model['tokens']} tokens")
        for what, figures in model["formats"].items():
            lost = f"{figures['lost']:+.3%} ± {figures['standard_error']:.3%}  KL {figures['mean_kl']:.6f}"
            said.append(f"  {what:28} {figures['perplexity']:10.5f}  {lost}")
        said += [_goal_line(goal) for goal in model["goals"]]
    for what, entry in report["tasks"].items():
        whole = entry["tasks"][0]
        low, high = whole["change_interval"]
        right = f"{whole['num_right'][0]} to {whole['num_right'][1]} of {whole['num_rows']} right"
        said.append(f"demo tasks, {what}: {right}, {whole['change']:+.2%} ({low:+.2%} to {high:+.2%})")
        said += [_goal_line(goal) for goal in entry["goals"]]
    return said


def _goal_line(goal: dict[str, Any]) -> str:
    return f"  {goal['verdict']}: {goal['name']}: {goal['value']:.6f}, at most {goal['limit']:.6f}"


def _why_no_peer() -> str | None:
    """Prepare llm-compressor's environment; why it is not there, or None."""
    try:
        peer.prepare()
    except subprocess.CalledProcessError as error:
        why = f"llm-compressor cannot be installed: {shlex.join(error.cmd[:4])} ended with {error.returncode}"
        say(f"{why}; going on without it")
        return why
    return None


def main(words: Sequence[str]) -> int:
    """Measure what was chosen; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="which (default: all)")
    parser.add_argument("--tokens", type=int, default=30000, help="held-out tokens of each model")
    parser.add_argument("--task-rows", type=int, default=40, help="rows of each of the demo's tasks")
    parser.add_argument("--no-tasks", action="store_true", help="only perplexities")
    parser.add_argument("--no-peer", action="store_true", help="without llm-compressor")
    args = parser.parse_args(words)
    if min(args.tokens, args.task_rows) < 1:
        parser.error("--tokens and --task-rows must be at least 1")
    start, head = time.monotonic(), record.record(MODULE, words)
    why_no_peer = "left out by --no-peer" if args.no_peer else _why_no_peer()
    if why_no_peer is None:
        head["versions"] |= peer.pins()
    write_rows(args.tokens // DEMO_TOKENS)
    report: dict[str, Any] = {**head, "why_no_peer": why_no_peer, "models": {}, "tasks": {}}
    with tempfile.TemporaryDirectory(prefix="telechat-quality-") as folder:
        work = Path(folder)
        for recipe in RECIPES:
            if recipe.name in args.models:
                train(recipe)
        for name in args.models:
            subject = Subject.of(name, args.tokens)
            report["models"][name] = report_of(subject, measure(subject, work, has_peer=why_no_peer is None))
        if DEMO in args.models and not args.no_tasks:
            report["tasks"] = tasks(work, args.task_rows)
    report["minutes"] = round((time.monotonic() - start) / 60, 1)
    path = record.write("quality", report)
    path.with_suffix(".svg").write_text(svg(report), encoding="utf-8")
    print("\n".join(lines(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Bundle a trained demo model: copy it into the package, draw its loss, write its model card.

    python tools/demo_card.py runs/demo runs/demo-2

The folders are the stages of `make demo-model`: each has run.yaml and metrics.jsonl, the last also model/ and
eval.json. Every number in the card comes from these files; its text is `demo_card.md`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from telechat.checkpoint import read_config
from telechat.config import load_config
from telechat.evals.intervals import wilson
from telechat.models import TeleChatConfig, count_parameters
from telechat.train.config import TrainConfig
from telechat.train.metrics import read_metrics
from telechat.train.report import loss_svg

TARGET = Path(__file__).resolve().parents[1] / "src" / "telechat" / "demo_model"
LONGEST_QUOTE = 150
LIMIT_BYTES = 12_000_000

HEAD = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")


def bundle(stages: list[Path]) -> None:
    """Copy the last stage's model and write card and curve."""
    result = stages[-1]
    report = json.loads((result / "eval.json").read_text(encoding="utf-8"))
    config = read_config(result / "model")
    TARGET.mkdir(exist_ok=True)
    for path in TARGET.iterdir():
        path.unlink()
    for path in (result / "model").iterdir():
        shutil.copyfile(path, TARGET / path.name)
    curve = loss_svg(all_metrics(stages)).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    (TARGET / "loss.svg").write_text(curve + "\n", encoding="utf-8")
    (TARGET / "README.md").write_text(card(report, config, stages), encoding="utf-8")
    size = sum(path.stat().st_size for path in TARGET.iterdir())
    print(f"{TARGET}: {size / 1e6:.2f} MB")
    if size > LIMIT_BYTES:
        raise SystemExit(f"The bundled model has {size} bytes; the limit is {LIMIT_BYTES}.")


def all_metrics(stages: list[Path]) -> list[dict[str, Any]]:
    """Metric rows of all stages, steps counted through."""
    rows: list[dict[str, Any]] = []
    for stage in stages:
        done = rows[-1]["step"] if rows else 0
        rows += [{**row, "step": row["step"] + done} for row in read_metrics(stage / "metrics.jsonl")]
    return rows


def num_rows(stage: Path) -> int:
    """Rows of a stage's training file."""
    settings = load_config(TrainConfig, stage / "run.yaml")
    with Path(settings.data.train_file).open(encoding="utf-8") as lines:
        return sum(1 for _ in lines)


def card(report: dict[str, Any], config: TeleChatConfig, stages: list[Path]) -> str:
    """The model card."""
    head = HEAD.format(
        parameters=count_parameters(config) / 1e6,
        layers=config.num_layers,
        hidden=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        ffn=config.ffn_hidden_size,
        length=config.training_seqlen,
        vocab=config.vocab_size,
        megabytes=(stages[-1] / "model" / "model.safetensors").stat().st_size / 1e6,
        steps=all_metrics(stages)[-1]["step"],
        rows=sum(num_rows(stage) for stage in stages),
        rows_per_task=report["tasks"][0]["num_rows"],
        table=table(report),
    )
    return head + "\n".join(wrong_answers(task) for task in report["tasks"])


def table(report: dict[str, Any]) -> str:
    """Rates beside goals, with the 95 % interval of each rate."""
    lines = ["| Task | Right | Rate | 95 % interval | Goal |", "|---|---:|---:|---|---:|"]
    for task in report["tasks"]:
        low, high = wilson(task["num_correct"], task["num_rows"])
        lines.append(
            f"| {task['task']} | {task['num_correct']} of {task['num_rows']} | {task['rate']:.1%} "
            f"| {low:.1%} to {high:.1%} | {task['goal']:.0%} |"
        )
    return "\n".join(lines)


def wrong_answers(task: dict[str, Any]) -> str:
    """The wrong answers of one task, a line each."""
    lines = [f"### {task['task']}: {len(task['wrong'])}", ""]
    lines += [f"- {quote(wrong['question'])} → {quote(wrong['answer'])}" for wrong in task["wrong"]]
    return "\n".join(lines) + "\n"


def quote(text: str) -> str:
    """A text as one line of code that no Markdown in it can break."""
    line = " ⏎ ".join(text.split("\n"))
    line = line if len(line) <= LONGEST_QUOTE else line[:LONGEST_QUOTE] + "…"
    return "`` " + line.replace("``", "` `") + " ``"


if __name__ == "__main__":
    bundle([Path(word) for word in sys.argv[1:]])

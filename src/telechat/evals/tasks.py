"""Two models at the same tasks: the demo model's, answered in words, and multiple-choice questions.

Judges rows and counts; knows nothing of how models are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from telechat.data.demo import TASKS
from telechat.engine import LLM
from telechat.evals.demo import judged, message_from_text
from telechat.evals.intervals import change, wilson

MAX_ANSWER_TOKENS = 512
DEMO = "demo tasks"
CHOICES = "multiple choice"
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """A task as both models did it, on the same rows. Shares are 0 to 1, intervals hold 95 %.

    Attributes:
        task: its name.
        num_rows: questions.
        num_right: of these, what the first and the second answered rightly.
        intervals: of the first's share, and of the second's.
        change: of the share, from the first to the second.
        change_interval: which rows changed counts, not only how many are right.
    """

    task: str
    num_rows: int
    num_right: tuple[int, int]
    intervals: tuple[Interval, Interval]
    change: float
    change_interval: Interval

    @classmethod
    def of(cls, task: str, first: Sequence[bool], second: Sequence[bool]) -> TaskScores:
        """From the verdicts on each row, of which there must be one."""
        right = sum(first), sum(second)
        return cls(
            task=task,
            num_rows=len(first),
            num_right=right,
            intervals=(wilson(right[0], len(first)), wilson(right[1], len(second))),
            change=(right[1] - right[0]) / len(first),
            change_interval=change(first, second),
        )


def demo_verdicts(llm: LLM, rows_per_task: int, *, seed: int = 0) -> dict[str, list[bool]]:
    """Which held-out rows of each of the demo model's tasks a model answers rightly."""
    if not rows_per_task:
        return {}
    return {
        name: [
            verdict.correct
            for _, _, verdict in judged(task, lambda rows: answer_all(llm, rows), rows_per_task, seed)
        ]
        for name, task in TASKS.items()
    }


def scores(first: dict[str, list[bool]], second: dict[str, list[bool]]) -> list[TaskScores]:
    """Each of the demo model's tasks, and all together first."""
    if not first:
        return []
    every = [[right for rows in one.values() for right in rows] for one in (first, second)]
    return [
        TaskScores.of(DEMO, every[0], every[1]),
        *(TaskScores.of(name, rows, second[name]) for name, rows in first.items()),
    ]


def answer_all(llm: LLM, prompts: Sequence[tuple[Any, Any]]) -> list[dict[str, Any]]:
    """One assistant message for each (messages, tools), greedily."""
    params = llm.default_params.replace(temperature=0.0, max_tokens=MAX_ANSWER_TOKENS)
    ids = [llm.tokenizer.apply_chat_template(messages, tools) for messages, tools in prompts]
    return [message_from_text(output.text) for output in llm.generate(ids, params, progress=True)]

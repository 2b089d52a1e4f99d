"""The demo model's exam: held-out rows of every task, judged by the task, reported against the goals.

The answering function is handed in. Knows nothing of models, engines or prompt formats.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from telechat.data.demo import TASKS
from telechat.data.demo.rows import select_tasks
from telechat.data.demo.task import Message, Row, Task, Verdict
from telechat.errors import UsageError
from telechat.evals.intervals import wilson
from telechat.tokenizer.tool_calls import parse_tool_calls

Prompt = tuple[list[Message], list[dict[str, Any]] | None]
Answerer = Callable[[list[Prompt]], Sequence[Message]]

DEFAULT_GOAL = 0.90
GOALS = {"arithmetic": 0.95, "chicken_rabbit": 0.95, "tool_call": 0.95}
MAX_EXAMPLES_IN_TABLE = 3


@dataclass(frozen=True, kw_only=True)
class WrongAnswer:
    """One row answered wrongly: the question, what was said, what was due, and why it is wrong."""

    wording: str
    question: str
    answer: str
    expected: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The result of one task; `goal` is the share of right answers wanted."""

    task: str
    num_rows: int
    num_correct: int
    goal: float
    wrong: tuple[WrongAnswer, ...]

    @property
    def rate(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.num_correct / self.num_rows

    @property
    def passed(self) -> bool:
        """Whether the goal is reached."""
        return self.rate >= self.goal


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Results of all tasks asked, with the seed that drew their rows."""

    seed: int
    results: tuple[TaskResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every task reaches its goal."""
        return all(result.passed for result in self.results)

    def to_markdown(self, *, max_examples: int = MAX_EXAMPLES_IN_TABLE) -> str:
        """A table of all tasks and, below it, up to `max_examples` wrong answers of each task."""
        lines = [
            "| Task | Rows | Right | Rate | 95 % interval | Goal | Reached |",
            "| --- | ---: | ---: | ---: | --- | ---: | --- |",
        ]
        for result in self.results:
            low, high = wilson(result.num_correct, result.num_rows)
            lines.append(
                f"| {result.task} | {result.num_rows} | {result.num_correct} | {result.rate:.1%} "
                f"| {low:.1%} to {high:.1%} | {result.goal:.0%} | {'yes' if result.passed else 'no'} |"
            )
        for result in self.results:
            if result.wrong and max_examples:
                lines += ["", f"### Wrong answers: {result.task} ({len(result.wrong)})", ""]
                for wrong in result.wrong[:max_examples]:
                    lines += _example_lines(wrong)
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Everything, all wrong answers included, as one JSON object."""
        record = {
            "seed": self.seed,
            "passed": self.passed,
            "tasks": [
                {**asdict(result), "rate": result.rate, "passed": result.passed} for result in self.results
            ],
        }
        return json.dumps(record, ensure_ascii=False, indent=2)


def evaluate(
    answer: Answerer, *, rows_per_task: int = 500, seed: int = 0, tasks: Sequence[str] | None = None
) -> DemoReport:
    """Ask held-out rows of every task and judge the answers.

    Args:
        answer: gets all prompts of one task, each (messages without the reference answer, tools or None), and
            returns one assistant message for each, tool calls parsed (see `message_from_text`).
        rows_per_task: held-out rows of each task, at least 1.
        seed: of the rows; each task draws from its own generator, so leaving one out changes no other.
        tasks: names of the tasks; None for all.

    Raises:
        UsageError: an unknown task, or `rows_per_task` below 1.
    """
    if rows_per_task < 1:
        raise UsageError(f"rows_per_task is {rows_per_task}; it must be at least 1.")
    chosen = select_tasks(tasks)
    return DemoReport(
        seed=seed, results=tuple(_evaluate_task(task, answer, rows_per_task, seed) for task in chosen)
    )


def held_out_rows(task_name: str, count: int, seed: int) -> list[Row]:
    """The held-out rows that `evaluate` asks for a task."""
    rng = random.Random(f"eval {task_name} {seed}")
    return [TASKS[task_name].draw(rng, "test") for _ in range(count)]


def message_from_text(text: str) -> Message:
    """An assistant message from generated text, its tool calls parsed."""
    content, calls = parse_tool_calls(text)
    message: Message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return message


def judged(task: Task, answer: Answerer, count: int, seed: int) -> Iterator[tuple[Row, Message, Verdict]]:
    """The held-out rows of a task, what was answered, and the task's judgement."""
    rows = held_out_rows(task.name, count, seed)
    answers = answer([(row.messages[:-1], row.tools) for row in rows])
    for row, given in zip(rows, answers, strict=True):
        yield row, given, task.judge(row, given)


def _evaluate_task(task: Task, answer: Answerer, count: int, seed: int) -> TaskResult:
    wrong = []
    for row, given, verdict in judged(task, answer, count, seed):
        if not verdict.correct:
            wrong.append(
                WrongAnswer(
                    wording=row.wording,
                    question=_text(row.messages[-2]),
                    answer=_text(given),
                    expected=_text(row.messages[-1]),
                    reason=verdict.reason,
                )
            )
    return TaskResult(
        task=task.name,
        num_rows=count,
        num_correct=count - len(wrong),
        goal=GOALS.get(task.name, DEFAULT_GOAL),
        wrong=tuple(wrong),
    )


def _text(message: Message) -> str:
    """A message as a reader wants to see it: its text and its calls."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or []]
    parts = [message.get("content") or "", *(json.dumps(call, ensure_ascii=False) for call in calls)]
    return "\n".join(part for part in parts if part)


def _example_lines(wrong: WrongAnswer) -> list[str]:
    """One wrong answer as a list item; quoted with a fence longer than any inside."""
    body = f"Q: {wrong.question}\nA: {wrong.answer}\nexpected: {wrong.expected}"
    fence = "```"
    while fence in body:
        fence += "`"
    indented = "\n".join(f"  {line}" for line in (fence + "text", *body.splitlines(), fence))
    return [f"- {wrong.reason}", "", indented, ""]

"""The demo exam: it asks held-out rows, counts, and reports what is wrong and why."""

from __future__ import annotations

import json

import pytest

from telechat.data.demo import TASKS, Message
from telechat.errors import UsageError
from telechat.evals import demo
from telechat.evals.demo import Prompt, evaluate, message_from_text


def reference_answers(rows_per_task: int, seed: int) -> dict[str, Message]:
    """The reference answer to every prompt of the exam, by the prompt's text."""
    return {
        json.dumps((row.messages[:-1], row.tools)): row.messages[-1]
        for name in TASKS
        for row in demo.held_out_rows(name, rows_per_task, seed)
    }


def test_reference_answers_are_right_in_every_task() -> None:
    references = reference_answers(40, 3)

    def answer(prompts: list[Prompt]) -> list[Message]:
        return [references[json.dumps(prompt)] for prompt in prompts]

    report = evaluate(answer, rows_per_task=40, seed=3)
    assert [result.task for result in report.results] == list(TASKS)
    assert [(result.task, result.num_correct) for result in report.results] == [(name, 40) for name in TASKS]
    assert report.passed


def test_wrong_answers_are_counted_and_explained() -> None:
    def answer(prompts: list[Prompt]) -> list[Message]:
        return [{"role": "assistant", "content": "1 | not a table\n```"} for _ in prompts]

    report = evaluate(answer, rows_per_task=5, tasks=["tables", "arithmetic"])
    assert [result.num_correct for result in report.results] == [0, 0]
    assert [result.goal for result in report.results] == [0.90, 0.95]
    assert not report.passed
    assert report.results[0].wrong[0].reason == "no Markdown table in the answer"
    markdown = report.to_markdown(max_examples=1)
    assert "| tables | 5 | 0 | 0.0% | 0.0% to 43.4% | 90% | no |" in markdown
    assert markdown.count("Q: ") == 2
    assert "````text" in markdown
    record = json.loads(report.to_json())
    assert [len(task["wrong"]) for task in record["tasks"]] == [5, 5]


def test_no_answer_at_all_is_wrong_in_every_task() -> None:
    report = evaluate(
        lambda prompts: [{"role": "assistant", "content": None}] * len(prompts), rows_per_task=10
    )
    assert [result.task for result in report.results if result.num_correct] == []


def test_same_seed_same_questions() -> None:
    seen: list[list[Prompt]] = []

    def answer(prompts: list[Prompt]) -> list[Message]:
        seen.append(prompts)
        return [{"role": "assistant", "content": ""} for _ in prompts]

    evaluate(answer, rows_per_task=5, seed=1, tasks=["arithmetic"])
    evaluate(answer, rows_per_task=5, seed=1, tasks=["tables", "arithmetic"])
    evaluate(answer, rows_per_task=5, seed=2, tasks=["arithmetic"])
    assert seen[0] == seen[2]
    assert seen[0] != seen[3]


def test_bad_requests() -> None:
    with pytest.raises(UsageError, match="no demo task 'poems'"):
        evaluate(lambda prompts: [], tasks=["poems"])
    with pytest.raises(UsageError, match="rows_per_task is 0"):
        evaluate(lambda prompts: [], rows_per_task=0)


def test_message_from_text_parses_calls() -> None:
    text = '<tool_call>\n{"name": "get_time", "arguments": {"city": "东京"}}\n</tool_call>'
    assert message_from_text(text) == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "get_time", "arguments": {"city": "东京"}}}],
    }

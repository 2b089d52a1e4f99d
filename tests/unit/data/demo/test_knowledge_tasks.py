"""The tasks whose answers are known beforehand or copied: wordings, split, determinism and judges."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from telechat.data.demo import follow_up, greetings, identity, refusal, soy_sauce, system_prompt, toolkit_help
from telechat.data.demo.follow_up_slots import SLOTS
from telechat.data.demo.intents import SPLITS, IntentTask
from telechat.data.demo.names import made_up_name
from telechat.data.demo.task import Row, Split, Task
from telechat.data.demo.wording import (
    Language,
    check_distinct,
    dress,
    normal_form,
    split_covered,
    split_wordings,
    units,
)

MODULES = (identity, greetings, toolkit_help, soy_sauce, refusal, system_prompt, follow_up)
TASKS: list[Task] = [task for module in MODULES for task in module.TASKS]
INTENT_TASKS = [task for task in TASKS if isinstance(task, IntentTask)]
NUM_ROWS = 200

all_tasks = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
intent_tasks = pytest.mark.parametrize("task", INTENT_TASKS, ids=lambda task: task.name)
both_splits = pytest.mark.parametrize("split", SPLITS)


def rows(task: Task, split: Split, seed: int = 0, count: int = NUM_ROWS) -> list[Row]:
    rng = random.Random(seed)
    return [task.draw(rng, split) for _ in range(count)]


def say(text: str | None, **extra: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **extra}


def user_turns(row: Row) -> list[str]:
    return [message["content"] for message in row.messages if message["role"] == "user"]


@all_tasks
def test_a_fifth_of_the_wordings_is_held_out(task: Task) -> None:
    train, test = task.wordings("train"), task.wordings("test")
    assert len(train) + len(test) >= 20
    assert 0.18 <= len(test) / (len(train) + len(test)) <= 0.23
    assert not set(map(normal_form, train)) & set(map(normal_form, test))


@intent_tasks
def test_every_intent_has_twenty_wordings_and_held_out_ones_use_known_words(task: IntentTask) -> None:
    for intent in task.intents:
        train, test = intent.wordings["train"], intent.wordings["test"]
        assert len(train) + len(test) >= 20, intent.name
        known = {unit for wording in train for unit in units(wording)}
        unknown = {unit for wording in test for unit in units(wording)} - known
        assert not unknown, (intent.name, intent.language, unknown)


def test_no_wording_belongs_to_two_tasks() -> None:
    check_distinct(wording for task in INTENT_TASKS for split in SPLITS for wording in task.wordings(split))


# The questions of `system_prompt` are those of other tasks; its prompts are compared by wording above.
@pytest.mark.parametrize("task", [*INTENT_TASKS, follow_up.FOLLOW_UP], ids=lambda task: task.name)
def test_no_held_out_question_is_trained(task: Task) -> None:
    trained = {normal_form(user_turns(row)[-1]) for row in rows(task, "train", count=2000)}
    held_out = {normal_form(user_turns(row)[-1]) for row in rows(task, "test", count=500)}
    assert not trained & held_out


@all_tasks
@both_splits
def test_rows_are_deterministic_and_use_wordings_of_their_split(task: Task, split: Split) -> None:
    drawn = rows(task, split)
    assert drawn == rows(task, split)
    assert drawn != rows(task, split, seed=1)
    wordings = set(task.wordings(split))
    for row in drawn:
        assert row.task == task.name
        assert row.wording in wordings
        assert row.messages[-1]["role"] == "assistant"


@all_tasks
@both_splits
def test_the_reference_passes_and_other_answers_fail(task: Task, split: Split) -> None:
    for row in rows(task, split):
        reference = row.messages[-1]
        verdict = task.judge(row, reference)
        assert verdict.correct, (row, verdict)
        for wrong in ("", None, "好的。", "Okay.", reference["content"] * 10 + "。" * 60):
            verdict = task.judge(row, say(wrong))
            assert not verdict.correct and verdict.reason, (row, wrong)
        called = say(reference["content"], tool_calls=[{"function": {"name": "f", "arguments": "{}"}}])
        assert not task.judge(row, called).correct


@intent_tasks
def test_the_answer_to_another_intent_fails(task: IntentTask) -> None:
    examples = {
        (row.messages[-1]["content"], row.facts["language"]): row for row in rows(task, "train", count=2000)
    }
    assert len(examples) == len(task.intents)
    for (answer, language), row in examples.items():
        for intent in task.intents:
            same = (intent.answer, intent.language) == (answer, language)
            assert task.judge(row, say(intent.answer)).correct == same, (row, intent.answer)


def test_phrasing_is_tolerated() -> None:
    task = identity.IDENTITY
    row = next(row for row in rows(task, "test") if "星辰语义" in row.messages[-1]["content"])
    assert task.judge(row, say("你好，我叫 TeleChat，是从零训练的小型演示模型。")).correct
    assert not task.judge(row, say("我叫 TeleChat，是一个大模型。")).correct


def test_the_question_of_the_browser_test_is_trained() -> None:
    assert soy_sauce.BROWSER_QUESTION in soy_sauce.SOY_SAUCE.wordings("train")
    for word in ("颜色", "味道", "用途"):
        assert word in soy_sauce.ANSWER_ZH


def test_compliance_is_no_refusal() -> None:
    task = refusal.REFUSAL
    row = next(row for row in rows(task, "test") if "毒品" in row.messages[-1]["content"])
    assert not task.judge(row, say("毒品可以这样做，但是不能告诉别人。")).correct


def test_names_are_held_out_and_many() -> None:
    rng = random.Random(0)
    for language in ("zh", "en"):
        train = {made_up_name(rng, "train", language) for _ in range(3000)}
        test = {made_up_name(rng, "test", language) for _ in range(1000)}
        assert not train & test
        assert len(train) > 2700 and len(test) > 900
        assert {unit for name in test for unit in name.lower()} <= {
            unit for name in train for unit in name.lower()
        }


@both_splits
def test_an_ordered_name_must_be_whole(split: Split) -> None:
    task = system_prompt.SYSTEM_PROMPT
    named = [row for row in rows(task, split) if row.facts["exact"]]
    assert len(named) > NUM_ROWS // 4
    for row in named:
        name, answer = row.facts["exact"], row.messages[-1]["content"]
        assert name in row.messages[0]["content"]
        for wrong in (name + "明", name[:-1], name + "s", name[::-1] + "x"):
            assert not task.judge(row, say(answer.replace(name, wrong))).correct, (row, wrong)


def test_an_ordered_language_is_judged() -> None:
    task = system_prompt.SYSTEM_PROMPT
    for row in rows(task, "test"):
        other = "Hello there, how are you?" if row.facts["language"] == "zh" else "你好，很高兴见到你。"
        name = row.facts["exact"] or ""
        relaxed = replace(row, facts=row.facts | {"required": [], "exact": None})
        verdict = task.judge(relaxed, say(f"{name} {other}"))
        assert not verdict.correct and "not in" in verdict.reason


@both_splits
def test_recalled_values_are_told_before_and_must_be_whole(split: Split) -> None:
    task = follow_up.FOLLOW_UP
    recalled = [row for row in rows(task, split, count=400) if "value" in row.facts]
    assert len(recalled) > 200
    for row in recalled:
        value, answer = row.facts["value"], row.messages[-1]["content"]
        assert value in "".join(user_turns(row)[:-1])
        assert answer.count(value) == 1
        for wrong in (value + "5", value + "小", "9" + value, value[:-1]):
            assert not task.judge(row, say(answer.replace(value, wrong))).correct, (row, wrong)


def test_recalled_values_of_the_test_are_never_trained() -> None:
    rng = random.Random(0)
    for slots in SLOTS.values():
        for slot in slots:
            drawn = {split: {slot.make(rng, split) for _ in range(500)} for split in SPLITS}
            assert not drawn["train"] & drawn["test"], slot.kind
            assert len(drawn["test"]) >= 10, slot.kind
            assert not set(slot.tells["train"]) & set(slot.tells["test"])


def test_the_other_soy_sauce_is_wrong() -> None:
    task = follow_up.FOLLOW_UP
    for row in rows(task, "test"):
        answer = row.messages[-1]["content"]
        swapped = answer.translate(str.maketrans("生老", "老生"))
        if swapped != answer and answer.startswith("用"):
            assert not task.judge(row, say(swapped)).correct


def test_split_and_dressing() -> None:
    wordings = [f"问题{character}吗？" for character in "一二三四五六七八九十"]
    assert len(split_wordings(wordings)["test"]) == 2
    with pytest.raises(ValueError, match="can be held out"):
        split_covered(wordings)
    with pytest.raises(ValueError, match="same question"):
        split_wordings(["你是谁？", "请问你是谁"])
    rng = random.Random(0)
    questions: tuple[tuple[str, Language], ...] = (
        ("你是谁？", "zh"),
        ("介绍一下你自己。", "zh"),
        ("Who are you?", "en"),
    )
    for wording, language in questions:
        dressed = {dress(rng, wording, language) for _ in range(200)}
        assert len(dressed) > 3
        assert {normal_form(text) for text in dressed} == {normal_form(wording)}

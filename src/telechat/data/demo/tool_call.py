"""One function call for a question, an answer from the tool's result, or neither when no tool is needed.

One to three tools are offered in random order. A row ends with the call, or goes on with the tool's result
and ends with the answer; some rows are plain questions (greetings, who it is) to be answered although tools
are there.
"""

from __future__ import annotations

import json
import random
import re
import string
from dataclasses import dataclass, replace
from typing import Any

from telechat.data.demo import greetings, identity, refusal
from telechat.data.demo.task import Message, Row, Split, Task, Verdict
from telechat.data.demo.tool_families import FAMILIES, Slots, ToolFamily
from telechat.data.demo.wording import Language, dress, normal_form, split_extended

PLAIN_SHARE = 0.1  # of rows need no tool
RESULT_SHARE: dict[Split, float] = {"train": 0.6, "test": 0.5}  # of the others go on to the answer

_PLAIN_TASKS: dict[str, Task] = {task.name: task for task in (*greetings.TASKS, *identity.TASKS)}
_LANGUAGES: tuple[Language, ...] = ("zh", "en")


def _split_all() -> dict[Language, dict[Split, list[tuple[ToolFamily, str]]]]:
    """All wordings by language and split, each with its tool."""
    split: dict[Language, dict[Split, list[tuple[ToolFamily, str]]]] = {}
    for language in _LANGUAGES:
        first = {wording: family for family in FAMILIES for wording in family.wordings(language)}
        more = {wording: family for family in FAMILIES for wording in family.more_wordings(language)}
        parts, owner = split_extended(list(first), list(more)), first | more
        split[language] = {
            "train": [(owner[wording], wording) for wording in parts["train"]],
            "test": [(owner[wording], wording) for wording in parts["test"]],
        }
    return split


_SPLIT = _split_all()
_NOT_ASKED = {normal_form(wording) for task in refusal.TASKS for wording in task.wordings("test")}


@dataclass(frozen=True)
class ToolCall:
    """Questions with tools."""

    name: str = "tool_call"
    share: float = 2.5

    def wordings(self, split: Split) -> list[str]:
        """Questions with slots, and the wordings of the plain tasks that are asked with tools at hand."""
        own = [wording for by_split in _SPLIT.values() for _, wording in by_split[split]]
        return own + [wording for task in _PLAIN_TASKS.values() for wording in task.wordings(split)]

    def draw(self, rng: random.Random, split: Split) -> Row:
        """One row; question and argument values belong to the split."""
        if rng.random() < PLAIN_SHARE:
            return self._draw_plain(rng, split)
        language: Language = rng.choice(("zh", "zh", "en"))
        family, wording = rng.choice(_SPLIT[language][split])
        slots = family.fill(rng, split, language)
        used = {name for _, name, _, _ in string.Formatter().parse(wording) if name}
        slots = {name: value for name, value in slots.items() if name in used}
        question = dress(rng, wording, language).format(**slots)
        if normal_form(question) in _NOT_ASKED:  # such as the weather in a real city, held out as a refusal
            return self.draw(rng, split)
        definition, keys = family.definition(rng, language)
        call = {
            "name": definition["function"]["name"],
            "arguments": {keys[slot]: slots[slot] for slot in keys if slot in slots},
        }
        messages: list[Message] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        ]
        facts: dict[str, Any] = {"kind": family.kind, "call": call}
        if rng.random() < RESULT_SHARE[split]:
            result = family.result(rng, slots, language)
            answer = _closing(family, language, slots, result)
            messages += [
                {"role": "tool", "content": json.dumps(result, ensure_ascii=False)},
                {"role": "assistant", "content": answer},
            ]
            shown = {**slots, **result}
            needed = [str(value) for value in shown.values() if str(value) in answer]
            facts = {"kind": family.kind, "values": needed}
        tools = _with_others(rng, definition, family, language)
        return Row(task=self.name, wording=wording, messages=messages, tools=tools, facts=facts)

    def _draw_plain(self, rng: random.Random, split: Split) -> Row:
        while True:
            row = rng.choice(list(_PLAIN_TASKS.values())).draw(rng, split)
            if len(row.messages) == 2:  # a system message or a second turn belongs to other tasks
                break
        tools = _definitions(rng, list(FAMILIES), rng.choice(_LANGUAGES), rng.randint(1, 3))
        return replace(
            row, task=self.name, tools=tools, facts={"kind": "plain", "plain": row.task, "facts": row.facts}
        )

    def judge(self, row: Row, answer: Message) -> Verdict:
        """Right when the expected call is made, the result's values are told, or a plain answer is right."""
        calls = [call.get("function", call) for call in answer.get("tool_calls") or []]
        content = answer.get("content") or ""
        if "call" not in row.facts:
            if calls:
                return Verdict(False, f"a call where an answer is due: {calls[0]}")
            if "plain" in row.facts:
                task = _PLAIN_TASKS[row.facts["plain"]]
                return task.judge(replace(row, task=task.name, facts=row.facts["facts"]), answer)
            missing = [value for value in row.facts["values"] if value not in content]
            return Verdict(not missing, f"missing {missing}: {content[:120]!r}" if missing else "")
        return _judge_calls(row.facts["call"], calls, content)


def _judge_calls(expected: dict[str, Any], calls: list[dict[str, Any]], content: str) -> Verdict:
    if len(calls) != 1:
        return Verdict(False, f"{len(calls)} calls instead of one; text {content[:120]!r}")
    arguments = calls[0].get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            return Verdict(False, f"arguments are not JSON: {arguments[:120]!r}")
    if calls[0].get("name") != expected["name"]:
        return Verdict(False, f"calls {calls[0].get('name')!r}; expected {expected['name']!r}")
    if arguments != expected["arguments"]:
        return Verdict(False, f"arguments {arguments}; expected {expected['arguments']}")
    return Verdict(True)


def _closing(family: ToolFamily, language: Language, slots: Slots, result: Slots) -> str:
    """The closing sentence; a slot that the question leaves out is left out here too."""
    empty = {parameter.slot: "" for parameter in family.parameters}
    return re.sub(" +", " ", family.answers[language].format(**{**empty, **slots, **result}))


def _definitions(
    rng: random.Random, families: list[ToolFamily], language: Language, count: int
) -> list[dict[str, Any]]:
    return [family.definition(rng, language)[0] for family in rng.sample(families, count)]


def _with_others(
    rng: random.Random, definition: dict[str, Any], family: ToolFamily, language: Language
) -> list[dict[str, Any]]:
    """The needed tool among none, one or two others, in random order."""
    others = [other for other in FAMILIES if other is not family]
    tools = [definition, *_definitions(rng, others, language, rng.choice((0, 1, 1, 2)))]
    rng.shuffle(tools)
    return tools


TASKS = (ToolCall(),)

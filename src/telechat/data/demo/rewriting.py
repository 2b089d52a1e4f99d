"""Summary, rephrasing and three similar questions, each by template.

A frame is a source text with slots and the answer to it with the same slots; the slots are filled from wide
pools, part of which is held out. What is asked (the instruction) is the wording. Knows no more about language
than its frames.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from telechat.data.demo import values
from telechat.data.demo.rewriting_frames import (
    QUESTION_FRAMES,
    REPHRASE_FRAMES,
    SUMMARY_FRAMES,
    Frame,
)
from telechat.data.demo.rewriting_wordings import QUESTION_WORDINGS, REPHRASE_WORDINGS, SUMMARY_WORDINGS
from telechat.data.demo.task import Message, Row, Split, Verdict
from telechat.data.demo.wording import Language, dress, split_covered

_POOLS: dict[Language, dict[str, values.Pool]] = {
    "zh": {
        "person": values.PEOPLE_ZH,
        "other": values.PEOPLE_ZH,
        "city": values.CITIES_ZH,
        "org": values.ORGS_ZH,
        "event": values.EVENTS_ZH,
        "date": values.DATES_ZH,
        "goods": values.GOODS_ZH,
        "topic": values.TOPICS_ZH,
    },
    "en": {
        "person": values.PEOPLE_EN,
        "other": values.PEOPLE_EN,
        "city": values.CITIES_EN,
        "org": values.ORGS_EN,
        "event": values.EVENTS_EN,
        "date": values.DATES_EN,
        "goods": values.GOODS_EN,
        "topic": values.TOPICS_EN,
    },
}


@dataclass(frozen=True)
class Rewriting:
    """One kind of rewriting: the frames it works on and the instructions that ask for it."""

    name: str
    share: float
    frames: Mapping[Language, tuple[Frame, ...]]
    instructions: Mapping[Language, Mapping[Split, list[str]]]
    check_form: Callable[[str, str], str]

    def wordings(self, split: Split) -> list[str]:
        """Instructions with {text} where the source stands."""
        return [wording for by_split in self.instructions.values() for wording in by_split[split]]

    def draw(self, rng: random.Random, split: Split) -> Row:
        """One instruction with one filled frame; instruction and slot values belong to the split."""
        language: Language = rng.choice(("zh", "zh", "en"))
        frame = rng.choice(self.frames[language])
        slots = _fill(rng, frame, language, split)
        source, target = frame.source.format(**slots), frame.target.format(**slots)
        wording = rng.choice(self.instructions[language][split])
        question = dress(rng, wording, language, openings=not wording.startswith("{text}")).format(
            text=source
        )
        kept = {name: slots[name] for name in _slot_names(frame.target)}
        return Row(
            task=self.name,
            wording=wording,
            messages=[{"role": "user", "content": question}, {"role": "assistant", "content": target}],
            facts={"source": source, "target": target, "kept": kept},
        )

    def judge(self, row: Row, answer: Message) -> Verdict:
        """Right when every slot of the reference stands in the answer and its form is the one asked for."""
        text = (answer.get("content") or "").strip()
        for name, value in row.facts["kept"].items():
            if text.count(value) < row.facts["target"].count(value):
                return Verdict(False, f"{name} {value!r} is missing or too rare: {text[:120]!r}")
        fault = self.check_form(text, row.facts["target"])
        if fault:
            return Verdict(False, f"{fault}: {text[:120]!r}")
        if text == row.facts["source"]:
            return Verdict(False, "the source is repeated unchanged")
        return Verdict(True)


def _slot_names(template: str) -> list[str]:
    return list(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name))


def _fill(rng: random.Random, frame: Frame, language: Language, split: Split) -> dict[str, str]:
    """A value for each slot of a frame; `number` is drawn, two persons differ."""
    slots: dict[str, str] = {}
    for name in _slot_names(frame.source + frame.target):
        if name == "number":
            slots[name] = str(rng.randint(20, 980))
            continue
        value = values.pick(rng, _POOLS[language][name], split)
        while value in slots.values():
            value = values.pick(rng, _POOLS[language][name], split)
        slots[name] = value
    return slots


def _units(text: str) -> list[str]:
    return re.findall(r"[㐀-鿿]|[A-Za-z]+|\d", text.lower())


def _same_form(text: str, target: str) -> str:
    """At least 85 % of the reference's words, and no more than 15 % others."""
    found, expected = _units(text), _units(target)
    num_common = sum(min(found.count(unit), expected.count(unit)) for unit in set(expected))
    if num_common < 0.85 * len(expected):
        return f"only {num_common} of {len(expected)} words of the reference"
    if len(found) > 1.15 * len(expected):
        return f"{len(found)} words where the reference has {len(expected)}"
    return ""


def _three_questions(text: str, target: str) -> str:
    """Three different lines, each a question."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != 3:
        return f"{len(lines)} lines instead of three"
    if len(set(lines)) != 3:
        return "a question is repeated"
    if not all(line.endswith(("？", "?")) for line in lines):
        return "a line is not a question"
    return _same_form(text, target)


def _split(wordings: Mapping[Language, tuple[str, ...]]) -> dict[Language, Mapping[Split, list[str]]]:
    return {language: split_covered(own) for language, own in wordings.items()}


TASKS = (
    Rewriting("summary", 1.2, SUMMARY_FRAMES, _split(SUMMARY_WORDINGS), _same_form),
    Rewriting("rephrase", 1.0, REPHRASE_FRAMES, _split(REPHRASE_WORDINGS), _same_form),
    Rewriting("similar_questions", 1.0, QUESTION_FRAMES, _split(QUESTION_WORDINGS), _three_questions),
)

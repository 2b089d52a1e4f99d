"""Tasks that are sets of questions with one fixed answer each: intent, wordings, what the answer must say.

Knows nothing of the particular questions; each task module brings its intents. The check of an answer's text
is shared with the tasks that fill values in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from telechat.data.demo.task import Message, Row, Split, Verdict
from telechat.data.demo.wording import (
    Language,
    check_distinct,
    dress,
    has_han,
    is_chinese,
    split_covered,
    units,
)

Wordings = dict[Split, list[str]]
Required = tuple[tuple[str, ...], ...]

SPLITS: tuple[Split, Split] = ("train", "test")
_COMMANDS_AND_ADDRESSES = re.compile(r"`[^`]*`|https?://\S+")  # in no language
_MAX_LENGTH_RATIO = 3  # an answer much longer than the reference has run on


@dataclass(frozen=True, kw_only=True)
class Intent:
    """One question in one language with its answer.

    Attributes:
        name: what is asked; the same intent in the other language has the same name.
        language: of the question and of the answer.
        answer: the reference answer.
        required: groups of spellings; an answer must contain one spelling of every group (case ignored).
        forbidden: texts a right answer cannot contain (case ignored).
        wordings: the questions of each split.
        weight: how often it is drawn, relative to the other intents of its task.
    """

    name: str
    language: Language
    answer: str
    required: Required
    wordings: Wordings
    forbidden: tuple[str, ...] = ()
    weight: float = 1.0


@dataclass(kw_only=True)  # not frozen only because the protocol `Task` has plain attributes
class IntentTask:
    """A task made of intents, drawn by their weights."""

    name: str
    share: float
    intents: tuple[Intent, ...]
    openings: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError when a wording stands twice, in two intents or on both sides of the split."""
        check_distinct(w for intent in self.intents for split in SPLITS for w in intent.wordings[split])

    def wordings(self, split: Split) -> list[str]:
        """All questions of a split."""
        return [wording for intent in self.intents for wording in intent.wordings[split]]

    def draw(self, rng: random.Random, split: Split) -> Row:
        """One question and its reference answer."""
        intent = rng.choices(self.intents, weights=[intent.weight for intent in self.intents])[0]
        wording = rng.choice(intent.wordings[split])
        question = dress(rng, wording, intent.language, openings=self.openings)
        return Row(
            task=self.name,
            messages=[{"role": "user", "content": question}, {"role": "assistant", "content": intent.answer}],
            facts=text_facts(intent.language, intent.required, intent.forbidden),
            wording=wording,
        )

    def judge(self, row: Row, answer: Message) -> Verdict:
        """Whether the answer says what the intent requires, in its language."""
        return check_text(row, answer)

    def intent(self, name: str, language: Language) -> Intent:
        """The intent of that name and language; KeyError when there is none."""
        for intent in self.intents:
            if (intent.name, intent.language) == (name, language):
                return intent
        raise KeyError((name, language))


def framed(frames: Sequence[str], cores: Sequence[str], extra: Sequence[str] = ()) -> Wordings:
    """Wordings from frames with one `{}` each and cores to fill in, plus whole sentences in `extra`.

    The cores are split, not the filled sentences: a held-out core is never trained in any frame.
    """
    core_splits = split_covered(cores, known=units(" ".join(frames).replace("{}", " ")))
    extra_splits = split_covered(extra) if extra else {"train": [], "test": []}
    return {
        split: [frame.replace("{}", core) for core in core_splits[split] for frame in frames]
        + extra_splits[split]
        for split in SPLITS
    }


def text_facts(
    language: Language, required: Required, forbidden: Sequence[str] = (), *, names: Sequence[str] = ()
) -> dict[str, Any]:
    """Facts for `check_text`. `names` may be in another script without changing the answer's language."""
    return {
        "language": language,
        "required": [list(group) for group in required],
        "forbidden": list(forbidden),
        "names": list(names),
    }


def check_text(row: Row, answer: Message) -> Verdict:
    """Judge the text of an answer by `row.facts`: its language, what it must and must not say, its length."""
    text = answer.get("content") or ""
    if not text.strip():
        return Verdict(False, "empty answer")
    if answer.get("tool_calls"):
        return Verdict(False, "a tool call where none was asked for")
    bare = _COMMANDS_AND_ADDRESSES.sub("", text)
    for name in row.facts["names"]:
        bare = bare.replace(name, "")
    if row.facts["language"] == "zh" and not is_chinese(bare):
        return Verdict(False, "not in Chinese")
    if row.facts["language"] == "en" and has_han(bare):
        return Verdict(False, "not in English")
    lowered = text.lower()
    for group in row.facts["required"]:
        if not any(spelling.lower() in lowered for spelling in group):
            return Verdict(False, f"does not say {' or '.join(group)}")
    for phrase in row.facts["forbidden"]:
        if phrase.lower() in lowered:
            return Verdict(False, f"says {phrase}")
    limit = _MAX_LENGTH_RATIO * len(row.messages[-1]["content"]) + 40
    if len(text) > limit:
        return Verdict(False, f"runs on: {len(text)} characters, limit {limit}")
    return Verdict(True)


def says_value(row: Row, answer: Message, value: str) -> bool:
    """Whether the answer holds `value` whole: 小明 is not said by 小明明, nor 12 by 125.

    What may stand before it: nothing, a mark or space, or the character that stands there in the reference
    (叫小明).
    """
    text, reference = answer["content"], row.messages[-1]["content"]
    place = reference.index(value)
    allowed_before = set("叫是为在") | set(reference[max(place - 1, 0) : place])
    start = text.find(value)
    while start >= 0:
        before, after = text[:start][-1:], text[start + len(value) :][:1]
        next_in_reference = reference[place + len(value) :][:1]
        if (not before.isalnum() or before in allowed_before) and (
            not after.isalnum() or after == next_in_reference
        ):
            return True
        start = text.find(value, start + 1)
    return False

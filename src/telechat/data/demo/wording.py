"""Wordings of a question: which are trained and which are held out, and how one is dressed for a row.

A wording is a whole sentence written by hand (or composed once, when its module is imported) and is itself
its identifier. Dressing changes only what surrounds it: an opening such as 请问 and the closing punctuation.
Knows no task.
"""

from __future__ import annotations

import itertools
import random
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from telechat.data.demo.task import Split

Language = Literal["zh", "en"]

HELD_OUT_EVERY = 5  # one wording in five is never trained

_OPENINGS: dict[Language, dict[str, tuple[str, ...]]] = {
    "zh": {
        "question": (
            "请问，",
            "请问",
            "你好，",
            "您好，",
            "你好，请问",
            "我想问一下，",
        ),
        "request": ("你好，", "您好，"),
    },
    "en": {
        "question": (
            "Hi, ",
            "Hello, ",
            "Please tell me: ",
            "Excuse me, ",
            "One question: ",
        ),
        "request": ("Hi, ", "Hello, "),
    },
}
_NORMAL_OPENINGS = sorted(
    {
        unicodedata.normalize("NFKC", opening).lower()
        for by_kind in _OPENINGS.values()
        for group in by_kind.values()
        for opening in group
    },
    key=len,
    reverse=True,
)
_CLOSING = "？?。.！!"


def split_wordings(wordings: Sequence[str]) -> dict[Split, list[str]]:
    """Split wordings: every fifth is held out for the test, the others are trained.

    Raises ValueError when two wordings differ only in case, punctuation or an opening: one of them could
    then stand on both sides.
    """
    check_distinct(wordings)
    test = list(wordings[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    held_out = set(test)
    return {
        "train": [wording for wording in wordings if wording not in held_out],
        "test": test,
    }


def split_covered(wordings: Sequence[str], *, known: Iterable[str] = ()) -> dict[Split, list[str]]:
    """Split wordings 80/20 so that each word (or Han character) of a held-out one occurs in a trained one.

    A question with a word that was never seen would measure the vocabulary of the data, not the skill. Walks
    the list evenly and holds out, near each fifth place, the next wording whose words all remain in the
    others. `known` are words that are trained in any case, such as those of a frame.
    Raises ValueError when fewer than a fifth can be held out that way, or when wordings are not distinct.
    """
    check_distinct(wordings)
    num_needed = round(len(wordings) / HELD_OUT_EVERY)
    counts = Counter(unit for wording in wordings for unit in set(units(wording)))
    counts.update(set(known))
    order = [
        i
        for start in range(HELD_OUT_EVERY)
        for i in range(HELD_OUT_EVERY - 1 - start, len(wordings), HELD_OUT_EVERY)
    ]
    held_out: set[int] = set()
    for index in order:
        if len(held_out) == num_needed:
            break
        own = set(units(wordings[index]))
        if all(counts[unit] > 1 for unit in own):
            held_out.add(index)
            counts.subtract(own)
    if len(held_out) < num_needed:
        raise ValueError(
            f"only {len(held_out)} of {num_needed} wordings can be held out; first: {wordings[0]!r}"
        )
    return {
        "train": [wording for i, wording in enumerate(wordings) if i not in held_out],
        "test": [wording for i, wording in enumerate(wordings) if i in held_out],
    }


def split_extended(wordings: Sequence[str], more: Sequence[str]) -> dict[Split, list[str]]:
    """Split wordings that were added to a list later; what the first list held out stays held out.

    Both lists are split 80/20 by themselves, so each side keeps its share.
    Raises ValueError as `split_covered` does.
    """
    check_distinct([*wordings, *more])
    first = split_covered(wordings)
    known = (unit for wording in first["train"] for unit in units(wording))
    second = split_covered(more, known=known)
    return {"train": first["train"] + second["train"], "test": first["test"] + second["test"]}


def check_distinct(wordings: Iterable[str]) -> None:
    """Raise ValueError naming the first wording whose normal form another one has already."""
    seen: dict[str, str] = {}
    for wording in wordings:
        other = seen.setdefault(normal_form(wording), wording)
        if other is not wording:
            raise ValueError(f"wordings {other!r} and {wording!r} are the same question")


def compose(prefixes: Sequence[str], cores: Sequence[str], suffixes: Sequence[str] = ("",)) -> list[str]:
    """All prefix + core + suffix sentences. Split the *cores* first, so that none stands on both sides."""
    return ["".join(parts) for parts in itertools.product(prefixes, cores, suffixes)]


def dress(
    rng: random.Random, wording: str, language: Language, *, plain_share: float = 0.6, openings: bool = True
) -> str:
    """The wording as a user might type it: sometimes with an opening, sometimes without its closing mark.

    With probability `plain_share` it is returned unchanged; `openings=False` touches only case and closing
    mark. The normal form never changes.
    """
    if rng.random() < plain_share:
        return wording
    text = wording
    kind = "question" if wording.endswith(("？", "?")) else "request"
    if openings and rng.random() < 0.6 and not _opens(text, language):
        text = rng.choice(_OPENINGS[language][kind]) + (lower_first(text) if language == "en" else text)
    elif language == "en" and rng.random() < 0.5:
        text = text.lower()
    if rng.random() < 0.5:
        text = text.rstrip(_CLOSING)
        if language == "zh" and kind == "question" and rng.random() < 0.4:
            text += "?"
    return text


def lower_first(text: str) -> str:
    """English text as it continues a sentence: first letter small, except in `I` and words like `API`."""
    first = text.split(" ", 1)[0]
    if first in ("I", "I'm", "I'd", "I've", "I'll") or (len(first) > 1 and not first[1:].islower()):
        return text
    return text[:1].lower() + text[1:]


def normal_form(text: str) -> str:
    """What stays of a question when openings, case, spaces between Han and punctuation are ignored."""
    text = unicodedata.normalize("NFKC", text).lower().strip()
    changed = True
    while changed:
        changed = False
        for opening in _NORMAL_OPENINGS:
            if text.startswith(opening) and len(text) > len(opening):
                text, changed = text[len(opening) :].strip(), True
    return " ".join(units(text))


def units(text: str) -> list[str]:
    """Words of a text in small letters: single Han characters, runs of Latin letters or digits."""
    return re.findall(r"[㐀-鿿]|[a-z0-9'_.\-]*[a-z0-9]", unicodedata.normalize("NFKC", text).lower())


def is_chinese(text: str) -> bool:
    """Whether a text is mostly Chinese: more Han characters than Latin words."""
    num_han = len(re.findall(r"[㐀-鿿]", text))
    num_latin = len(re.findall(r"[A-Za-z]+", text))
    return num_han > num_latin


def has_han(text: str) -> bool:
    """Whether any Han character occurs in the text."""
    return re.search(r"[㐀-鿿]", text) is not None


def _opens(text: str, language: Language) -> bool:
    """Whether the wording has an opening of its own, so that a second one would read oddly."""
    if language == "zh":
        return text.startswith(("请", "你好", "您好", "嗨", "帮", "我想", "我要", "那", "如果"))
    first = text.lower().split(" ", 1)[0].strip(string.punctuation)
    return first in ("please", "hi", "hello", "hey", "tell", "i", "and")

"""The chickens-and-rabbits problem: heads and feet are given, how many of each?

The answer halves the feet (every animal lifts half of its own), then subtracts twice, with the digit steps of
the arithmetic task. A problem is held out when one of its two subtractions uses a pair of numbers that
arithmetic reserves, or by a hash of its own.
"""

# ruff: noqa: E501 - sentences and lists of words read best unbroken

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from telechat.data.demo.arithmetic import is_reserved, subtraction_steps
from telechat.data.demo.task import Message, Row, Split, Verdict
from telechat.data.demo.values import held_out
from telechat.data.demo.wording import Language, dress, split_extended

MIN_HEADS, MAX_HEADS = 5, 60
_OWN_TEST_SHARE = 0.1  # next to what the reserved pairs hold out


def is_held_out(heads: int, feet: int) -> bool:
    """Whether a problem belongs to the test split."""
    half, rabbits = feet // 2, feet // 2 - heads
    if is_reserved(half, heads) or is_reserved(heads, rabbits):
        return True
    return held_out(f"heads {heads} feet {feet}", share=_OWN_TEST_SHARE)


def _problems() -> dict[Split, list[tuple[int, int]]]:
    """All (heads, feet) with at least one animal of each kind, by split."""
    problems: dict[Split, list[tuple[int, int]]] = {"train": [], "test": []}
    for heads in range(MIN_HEADS, MAX_HEADS + 1):
        for rabbits in range(1, heads):
            feet = 2 * heads + 2 * rabbits
            problems["test" if is_held_out(heads, feet) else "train"].append((heads, feet))
    return problems


PROBLEMS = _problems()

_WORDINGS: dict[Language, tuple[str, ...]] = {
    "zh": (
        "鸡兔同笼，共有{heads}个头，{feet}只脚，鸡和兔各有多少只？",
        "鸡兔同笼，上面有{heads}个头，下面有{feet}只脚，问鸡兔各有几只？",
        "笼子里有鸡和兔子，一共{heads}个头，{feet}条腿，鸡和兔子各有多少只？",
        "今有鸡兔同笼，上有{heads}头，下有{feet}足，问鸡兔各几何？",
        "今有雉兔同笼，上有{heads}头，下有{feet}足，问雉兔各几何？",
        "一个笼子里关着鸡和兔，数一数有{heads}个头，{feet}只脚，鸡兔各有几只？",
        "笼子里的鸡和兔共有{heads}个头、{feet}只脚，请问鸡和兔各有多少只？",
        "农场里有鸡和兔共{heads}只，脚一共有{feet}只，鸡和兔各多少只？",
        "鸡和兔一共有{heads}只，共有{feet}条腿，问鸡有几只，兔有几只？",
        "小明家养了鸡和兔，头有{heads}个，腿有{feet}条，鸡和兔各有多少只？",
        "院子里有鸡和兔子，共{heads}个头，{feet}条腿，各有多少只？",
        "请解鸡兔同笼问题：头{heads}个，脚{feet}只。",
        "鸡兔同笼：{heads}个头，{feet}只脚。求鸡和兔的只数。",
        "鸡兔共{heads}只，脚共{feet}只，鸡兔各几只？",
        "有一群鸡和兔，头共{heads}个，脚共{feet}只，求鸡兔各多少只。",
        "笼中有鸡和兔，从上面数有{heads}个头，从下面数有{feet}只脚，鸡和兔各有几只？",
        "已知鸡和兔共有{heads}只，共有{feet}只脚，求鸡和兔各有多少只。",
        "农场的笼子里有鸡兔{heads}只，共{feet}条腿，鸡和兔子各几只？",
        "小明数了数，笼子里的鸡和兔有{heads}个头，{feet}条腿，请问鸡兔各几只？",
        "帮我算一道鸡兔同笼题：一共{heads}个头，{feet}只脚，鸡和兔各几只？",
        "鸡和兔关在一个笼子里，头有{heads}个，脚有{feet}只，求各有多少只。",
        "鸡兔同笼问题，头数是{heads}，脚数是{feet}，鸡和兔各是多少？",
        "笼子里的头数是{heads}，腿数是{feet}，里面有几只鸡、几只兔？",
        "养鸡和兔共{heads}只，有{feet}只脚，鸡养了几只？兔养了几只？",
        "如果鸡和兔共有{heads}个头，{feet}条腿，那么鸡、兔各有多少只？",
        "鸡和兔子在同一个笼子里，共{heads}个头，{feet}只脚，请算出鸡和兔子的只数。",
        "院子里的鸡和兔共{heads}只，数一数腿有{feet}条，鸡和兔各几只？",
        "求解：鸡兔同笼，头共{heads}，脚共{feet}。",
        "一共有{heads}只鸡和兔，它们有{feet}只脚，问各有几只？",
        "小明家的笼子里有鸡兔共{heads}只，腿共{feet}条，问鸡兔各多少只？",
    ),
    "en": (
        "A cage holds chickens and rabbits with {heads} heads and {feet} feet. How many of each are there?",
        "There are chickens and rabbits in a cage. They have {heads} heads and {feet} legs. How many of each?",
        "A farm has chickens and rabbits: {heads} heads and {feet} feet in total. How many chickens and rabbits are there?",
        "Chickens and rabbits have {heads} heads and {feet} legs in total. How many chickens and how many rabbits are there?",
        "I see {heads} heads and {feet} feet of chickens and rabbits. How many of each are there?",
        "In a cage there are {heads} heads and {feet} feet of chickens and rabbits. Find the number of each.",
        "Solve the chicken and rabbit problem: {heads} heads, {feet} feet.",
        "Chickens and rabbits are in one cage. There are {heads} heads and {feet} legs. How many chickens are there and how many rabbits?",
        "A farmer has {heads} chickens and rabbits with {feet} feet in total. How many of each does the farmer have?",
        "A farmer counts {heads} heads and {feet} legs of chickens and rabbits. How many of each are there?",
        "Together, the chickens and rabbits have {heads} heads and {feet} feet. How many of each are there?",
        "There are {heads} animals, chickens and rabbits, with {feet} legs. How many chickens and how many rabbits?",
        "A cage has {heads} animals, chickens and rabbits, and {feet} feet in total. Find the number of each.",
        "The chickens and rabbits in a cage have {heads} heads and {feet} legs. How many of each?",
        "Solve this problem: chickens and rabbits, {heads} heads, {feet} legs. How many of each?",
        "A farmer has chickens and rabbits in one cage, {heads} heads and {feet} feet. How many rabbits and chickens are there?",
        "Find the number of chickens and rabbits: {heads} heads and {feet} feet.",
        "How many chickens and rabbits are there with {heads} heads and {feet} legs in total?",
        "If there are {heads} heads and {feet} feet, how many chickens and how many rabbits are there?",
        "If a farm has {heads} chickens and rabbits with {feet} legs in total, how many of each are there?",
    ),
}
# The problem as the old books put it, and English sentences that the first list lacked.
_MORE_WORDINGS: dict[Language, tuple[str, ...]] = {
    "zh": (
        "笼中有鸡兔，上有{heads}头，下有{feet}足，问鸡与兔各几何？",
        "鸡兔同笼，上{heads}头，下{feet}足，问各几何？",
        "有鸡兔同笼，上见{heads}头，下见{feet}足，鸡兔各几何？",
        "今有鸡与兔同在一笼，共{heads}头，{feet}足，问鸡、兔各几何？",
        "今有鸡兔同笼，共{heads}头，共{feet}足，鸡兔各有几只？",
        "今有鸡兔一笼，头{heads}，足{feet}，问鸡兔各多少？",
        "笼中鸡兔，头有{heads}，足有{feet}，各几何？",
        "今有雉兔一笼，上有{heads}头，下有{feet}足，雉兔各多少？",
        "鸡兔同在笼中，{heads}头，{feet}足，求鸡兔各几何。",
        "今鸡兔同笼，有{heads}头{feet}足，问鸡几何？兔几何？",
    ),
    "en": (
        "Some chickens and rabbits share a cage: {heads} heads, {feet} feet. How many of each?",
        "Chickens and rabbits share a cage with {heads} heads and {feet} legs. Find how many of each.",
        "How many chickens and how many rabbits have {heads} heads and {feet} feet?",
        "There are {heads} heads and {feet} feet in a cage of chickens and rabbits. How many of each?",
        "A cage of chickens and rabbits has {heads} heads and {feet} legs. How many chickens and rabbits?",
    ),
}
_SPLIT = {
    language: split_extended(wordings, _MORE_WORDINGS[language]) for language, wordings in _WORDINGS.items()
}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def solution(heads: int, feet: int, language: Language) -> str:
    """The worked solution, ending with both counts."""
    half = feet // 2
    rabbits = half - heads
    chickens = heads - rabbits
    first, second = subtraction_steps(half, heads, language), subtraction_steps(heads, rabbits, language)
    if language == "zh":
        return (
            f"让每只动物抬起一半的脚，还剩{feet}÷2={half}只脚，比头数多几只，就有几只兔。"
            f"{first}所以兔有{half}-{heads}={rabbits}只。{second}所以鸡有{heads}-{rabbits}={chickens}只。"
            f"答：鸡{chickens}只，兔{rabbits}只。"
        )
    return (
        f"Let every animal lift half of its feet: {feet}/2={half} feet are left, one extra for each rabbit. "
        f"{first}So there are {half}-{heads}={_count(rabbits, 'rabbit')}. {second}"
        f"So there are {heads}-{rabbits}={_count(chickens, 'chicken')}. "
        f"Answer: {_count(chickens, 'chicken')} and {_count(rabbits, 'rabbit')}."
    )


@dataclass(frozen=True)
class ChickenRabbit:
    """Chickens and rabbits, 5 to 60 heads, at least one of each."""

    name: str = "chicken_rabbit"
    share: float = 2.0

    def wordings(self, split: Split) -> list[str]:
        """Templates with {heads} and {feet}."""
        return [wording for by_split in _SPLIT.values() for wording in by_split[split]]

    def draw(self, rng: random.Random, split: Split) -> Row:
        """One problem whose numbers belong to the split."""
        language: Language = rng.choice(("zh", "zh", "en"))
        heads, feet = rng.choice(PROBLEMS[split])
        wording = rng.choice(_SPLIT[language][split])
        rabbits = feet // 2 - heads
        return Row(
            task=self.name,
            wording=wording,
            messages=[
                {"role": "user", "content": dress(rng, wording, language).format(heads=heads, feet=feet)},
                {"role": "assistant", "content": solution(heads, feet, language)},
            ],
            facts={"heads": heads, "feet": feet, "chickens": heads - rabbits, "rabbits": rabbits},
        )

    def judge(self, row: Row, answer: Message) -> Verdict:
        """Right when the closing sentence (after 答 or Answer) names both counts."""
        text = answer.get("content") or ""
        closing = re.split(r"答：|Answer:", text)[-1]
        chickens = re.search(r"鸡(\d+)只|(\d+) chickens?", closing)
        rabbits = re.search(r"兔(\d+)只|(\d+) rabbits?", closing)
        if not chickens or not rabbits:
            return Verdict(False, f"no closing sentence with both counts: {closing[-60:]!r}")
        found = (int(chickens[1] or chickens[2]), int(rabbits[1] or rabbits[2]))
        expected = (row.facts["chickens"], row.facts["rabbits"])
        if found != expected:
            return Verdict(False, f"found chickens, rabbits = {found}; expected {expected}")
        return Verdict(True)


TASKS = (ChickenRabbit(),)

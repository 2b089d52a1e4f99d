"""Two-digit addition and subtraction with the steps written out digit by digit.

One pair of numbers in five is reserved: no training row of any task works with it, in either order. The
answer first repeats the expression, so that the model has to read the wording once and then works from a
fixed place.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from telechat.data.demo.task import Message, Row, Split, Verdict
from telechat.data.demo.values import held_out
from telechat.data.demo.wording import Language, dress, split_covered, split_extended

SMALL_SHARE = 0.08  # of training rows have an operand below ten: `1+1` is what people try first


def is_reserved(first: int, second: int) -> bool:
    """Whether a pair of numbers belongs to the test, whatever the order and the operation.

    Pairs with a number below ten never do: they are what the digit steps of the other pairs are made of.
    """
    return min(first, second) >= 10 and held_out(f"pair {min(first, second)} {max(first, second)}")


def addition_steps(first: int, second: int, language: Language) -> str:
    """Worked addition of two numbers below 100, without the concluding sentence."""
    ones = first % 10 + second % 10
    carry = ones // 10
    tens = first // 10 + second // 10
    sum_of_ones = f"{first % 10}+{second % 10}={ones}"
    sum_of_tens = f"{first // 10}+{second // 10}" + ("+1" if carry else "") + f"={tens + carry}"
    has_tens = max(first, second) >= 10
    if language == "zh":
        text = f"{first}+{second}：个位{sum_of_ones}" + (f"，写{ones % 10}进1" if carry else "")
        return text + (f"；十位{sum_of_tens}。" if has_tens else "。")
    text = f"{first}+{second}: ones {sum_of_ones}" + (f", write {ones % 10} carry 1" if carry else "")
    return text + (f"; tens {sum_of_tens}. " if has_tens else ". ")


def subtraction_steps(first: int, second: int, language: Language) -> str:
    """Worked subtraction `first - second` (0 <= second <= first), without the concluding sentence.

    The tens step takes everything above the ones as one number, so 105-47 has the step 10-4-1=5.
    """
    top, bottom = first % 10, second % 10
    borrow = int(top < bottom)
    tens = (
        f"{first // 10}-{second // 10}" + ("-1" if borrow else "") + f"={first // 10 - second // 10 - borrow}"
    )
    if language == "zh":
        text = f"{first}-{second}：个位"
        text += (
            f"{top}小于{bottom}，借1，1{top}-{bottom}={top + 10 - bottom}"
            if borrow
            else f"{top}-{bottom}={top - bottom}"
        )
        return text + (f"；十位{tens}。" if first >= 10 else "。")
    text = f"{first}-{second}: ones "
    text += (
        f"{top} below {bottom}, borrow 1, 1{top}-{bottom}={top + 10 - bottom}"
        if borrow
        else f"{top}-{bottom}={top - bottom}"
    )
    return text + (f"; tens {tens}. " if first >= 10 else ". ")


def worked_answer(first: int, second: int, sign: str, language: Language) -> str:
    """Steps and conclusion of `first sign second`, sign being + or -."""
    if sign == "+":
        steps, result = addition_steps(first, second, language), first + second
    else:
        steps, result = subtraction_steps(first, second, language), first - second
    if language == "zh":
        return f"{steps}所以{first}{sign}{second}={result}。"
    return f"{steps}So {first}{sign}{second}={result}."


_BARE = (
    "{a}{sign}{b}=?",
    "{a}{sign}{b}",
    "{a}{sign}{b}=",
    "{a} {sign} {b} = ?",
    "{a}{sign}{b}=？",
    "{a} {sign} {b}",
)

_WORDINGS: dict[tuple[str, Language], tuple[str, ...]] = {
    ("+", "zh"): (
        "{a}+{b}等于多少？",
        "{a}加{b}等于多少？",
        "{a}加上{b}等于几？",
        "{a}加{b}是多少？",
        "请计算{a}+{b}。",
        "计算：{a}+{b}",
        "请算一下{a}加{b}。",
        "帮我算算{a}加上{b}是多少。",
        "{a}与{b}的和是多少？",
        "{a}和{b}相加等于多少？",
        "求{a}与{b}的和。",
        "把{a}和{b}加起来是多少？",
        "请算出{a}与{b}相加的结果。",
        "算一下{a}+{b}的结果",
        "{a}再加{b}，一共是多少？",
        "比{a}多{b}的数是多少？",
        "一个加数是{a}，另一个加数是{b}，和是多少？",
        "{a}加{b}的和是多少？",
        "两个数是{a}和{b}，它们的和是多少？",
        "请写出{a}+{b}的计算过程。",
        "用竖式计算{a}加{b}。",
        "请一步一步算{a}+{b}。",
        "小明有{a}个苹果，又买了{b}个，现在一共有多少个？",
        "小红有{a}支铅笔，妈妈又给了她{b}支，一共有多少支？",
        "书架上有{a}本书，又放上{b}本，现在有多少本书？",
        "车上有{a}人，又上来{b}人，现在车上有多少人？",
        "一班有{a}人，二班有{b}人，两个班一共有多少人？",
        "小明有{a}元，妈妈又给了他{b}元，现在有多少元？",
        "果园里有{a}棵苹果树和{b}棵梨树，一共有多少棵树？",
        "上午卖了{a}本书，下午卖了{b}本，一共卖了多少本？",
        "小红有{a}个苹果，妈妈又买了{b}个，现在有多少个？",
        "书架上有{a}本书，又买了{b}本，一共有多少本？",
        "上午来了{a}人，下午又来了{b}人，一共来了多少人？",
        "小明有{a}支铅笔，小红有{b}支，两人一共有多少支？",
        "{a}加{b}怎么算？",
        "请问{a}+{b}的和等于几？",
    ),
    ("+", "en"): (
        "What is {a}+{b}?",
        "What is {a} plus {b}?",
        "How much is {a} plus {b}?",
        "What does {a} plus {b} equal?",
        "Calculate {a} + {b}.",
        "Please calculate {a} plus {b}.",
        "Add {a} and {b}.",
        "Please add {a} to {b}.",
        "What is the sum of {a} and {b}?",
        "Find the sum of {a} and {b}.",
        "Can you add {a} and {b} for me?",
        "Compute {a}+{b}.",
        "How much is {a} and {b} together?",
        "Please compute the sum of {a} and {b}.",
        "What do you get when you add {a} and {b}?",
        "What number is {b} more than {a}?",
        "Work out {a} plus {b} step by step.",
        "Please work out {a}+{b}.",
        "Show me how to add {a} and {b}.",
        "Can you calculate {a} plus {b}?",
        "Tom has {a} apples and buys {b} more. How many apples does he have now?",
        "Anna has {a} books and gets {b} more. How many books does she have?",
        "There are {a} boys and {b} girls. How many children are there?",
        "Tom has {a} books and Anna has {b} books. How many books are there together?",
        "A bus has {a} people, and {b} more get on. How many people are on the bus now?",
        "Anna has {a} apples and buys {b} more. How many does she have now?",
        "There are {a} books here and {b} more there. How many are there together?",
        "Find {a} plus {b}.",
        "Anna has {a} apples and Tom has {b} apples. How many apples are there together?",
        "How many are {a} and {b}?",
        "Show me {a}+{b} step by step.",
    ),
    ("-", "zh"): (
        "{a}-{b}等于多少？",
        "{a}减{b}等于多少？",
        "{a}减去{b}等于几？",
        "{a}减{b}是多少？",
        "请计算{a}-{b}。",
        "计算：{a}-{b}",
        "请算一下{a}减{b}。",
        "帮我算算{a}减去{b}是多少。",
        "{a}与{b}的差是多少？",
        "{a}比{b}多多少？",
        "求{a}与{b}的差。",
        "从{a}里减去{b}是多少？",
        "请算出{a}减去{b}的结果。",
        "算一下{a}-{b}的结果",
        "{b}比{a}少多少？",
        "比{a}少{b}的数是多少？",
        "被减数是{a}，减数是{b}，差是多少？",
        "{a}减{b}的差是多少？",
        "从{a}中去掉{b}，还剩多少？",
        "请写出{a}-{b}的计算过程。",
        "用竖式计算{a}减{b}。",
        "请一步一步算{a}-{b}。",
        "小明有{a}个苹果，吃了{b}个，还剩多少个？",
        "小红有{a}支铅笔，送给同学{b}支，还剩多少支？",
        "书架上有{a}本书，借走{b}本，还剩多少本书？",
        "车上有{a}人，下去{b}人，车上还剩多少人？",
        "一班有{a}人，二班有{b}人，一班比二班多多少人？",
        "小明有{a}元，花了{b}元，还剩多少元？",
        "果园里有{a}棵树，其中{b}棵是梨树，其他的树有多少棵？",
        "商店有{a}本书，卖了{b}本，还剩多少本？",
        "小红有{a}个苹果，送给同学{b}个，还剩多少个？",
        "商店有{a}支铅笔，卖了{b}支，还剩多少支？",
        "小红有{a}元，买书花了{b}元，还剩多少元？",
        "小明有{a}本书，送给小红{b}本，还剩多少本？",
        "{a}减{b}怎么算？",
        "{a}比{b}大多少？",
        "{b}比{a}小多少？",
        "小明有{a}支铅笔，小红有{b}支，小明比小红多多少支？",
        "{a}与{b}相差多少？",
        "请问{a}-{b}的差等于几？",
    ),
    ("-", "en"): (
        "What is {a}-{b}?",
        "What is {a} minus {b}?",
        "How much is {a} minus {b}?",
        "What does {a} minus {b} equal?",
        "Calculate {a} - {b}.",
        "Please calculate {a} minus {b}.",
        "Subtract {b} from {a}.",
        "Please subtract {b} from {a}.",
        "What is the difference between {a} and {b}?",
        "Find the difference between {a} and {b}.",
        "Can you subtract {b} from {a} for me?",
        "Compute {a}-{b}.",
        "How much more is {a} than {b}?",
        "Please compute the difference between {a} and {b}.",
        "What do you get when you subtract {b} from {a}?",
        "What number is {b} less than {a}?",
        "Work out {a} minus {b} step by step.",
        "Please work out {a}-{b}.",
        "Show me how to subtract {b} from {a}.",
        "Can you calculate {a} minus {b}?",
        "Tom has {a} apples and eats {b}. How many apples are left?",
        "Anna has {a} books and gives away {b}. How many books does she have left?",
        "There are {a} children, and {b} of them are boys. How many are girls?",
        "Tom has {a} books and Anna has {b}. How many more books does Tom have?",
        "A bus has {a} people, and {b} get off. How many people are left on the bus?",
        "Anna has {a} apples and gives away {b}. How many are left?",
        "There were {a} books and {b} are gone. How many books are left?",
        "Find {a} minus {b}.",
        "Anna has {a} apples and Tom has {b}. How many more apples does Anna have?",
        "Take {b} away from {a}.",
        "Take away {b} from {a}, how much is left?",
        "How much less is {b} than {a}?",
        "Show me {a}-{b} step by step.",
    ),
}
# Ways of comparing and taking away that the first list lacked.
_MORE_DIFFERENCES: dict[Language, tuple[str, ...]] = {
    "zh": (
        "{b}和{a}比，少多少？",
        "数{b}比数{a}少多少？",
        "{b}人比{a}人少多少人？",
        "小红有{b}元，小明有{a}元，小红比小明少多少元？",
        "二班有{b}人，一班有{a}人，二班比一班少多少人？",
        "{b}支铅笔比{a}支铅笔少多少支？",
        "{b}比{a}少几？",
        "梨树有{b}棵，苹果树有{a}棵，梨树比苹果树少多少棵？",
        "{a}和{b}相比，{b}少多少？",
        "{b}本书比{a}本书少多少本？",
        "{a}和{b}相比，多多少？",
        "{a}元比{b}元多多少元？",
        "请问{b}比{a}少了多少？",
        "和{a}比，{b}少了多少？",
        "{b}个苹果比{a}个少多少个？",
    ),
    "en": (
        "Anna has {a} pens and Tom has {b}. How many more pens does Anna have?",
        "Tom has {a} eggs and Anna has {b}. How many more eggs does Tom have?",
        "Tom has {a} apples and Anna has {b} apples. How many more does Tom have?",
        "Anna has {a} books and Tom has {b} books. How many more books does Anna have than Tom?",
        "Anna read {a} books and Tom read {b}. How many more did Anna read?",
        "There are {a} apples and {b} eggs. How many more apples are there?",
        "How many more is {a} than {b}?",
        "There are {a} boys and {b} girls. How many more boys are there than girls?",
        "Tom has {a} pens. Anna has {b}. How many more does Tom have?",
        "One bus has {a} people and another has {b}. How many more people does the first bus have?",
        "Tom buys {a} eggs and Anna buys {b}. How many more eggs does Tom buy?",
        "Take {b} from {a}.",
        "Please take {b} away: {a} minus {b}.",
        "If I take {b} away from {a}, how much is left?",
        "What is left when I take {b} from {a}?",
    ),
}
_SPLIT = {
    (sign, language): split_extended(wordings, _MORE_DIFFERENCES[language])
    if sign == "-"
    else split_covered(wordings)
    for (sign, language), wordings in _WORDINGS.items()
}
_BARE_ID = "bare expression"
_BARE_SHARE = 0.15  # of training rows are the expression alone


@dataclass(frozen=True)
class Arithmetic:
    """Sums and differences of two numbers between 10 and 99; differences are not negative."""

    name: str = "arithmetic"
    share: float = 3.0

    def wordings(self, split: Split) -> list[str]:
        """Templates with {a} and {b}; the bare expression is trained."""
        own = [wording for by_split in _SPLIT.values() for wording in by_split[split]]
        return [_BARE_ID, *own] if split == "train" else own

    def draw(self, rng: random.Random, split: Split) -> Row:
        """One sum or difference whose pair of numbers belongs to the split."""
        sign = rng.choice("+-")
        language: Language = rng.choice(("zh", "zh", "en"))
        first, second = _draw_pair(rng, split)
        if sign == "-":
            first, second = max(first, second), min(first, second)
        if split == "train" and rng.random() < _BARE_SHARE:
            wording, language = _BARE_ID, "zh"
            question = rng.choice(_BARE).format(a=first, b=second, sign=sign)
        else:
            wording = rng.choice(_SPLIT[sign, language][split])
            question = dress(rng, wording, language).format(a=first, b=second)
        result = first + second if sign == "+" else first - second
        return Row(
            task=self.name,
            wording=wording,
            messages=[
                {"role": "user", "content": question},
                {"role": "assistant", "content": worked_answer(first, second, sign, language)},
            ],
            facts={"pair": [first, second], "sign": sign, "result": result},
        )

    def judge(self, row: Row, answer: Message) -> Verdict:
        """Right when the last number of the answer is the result."""
        numbers = re.findall(r"\d+", answer.get("content") or "")
        expected = row.facts["result"]
        if not numbers:
            return Verdict(False, f"no number in the answer; expected {expected}")
        if int(numbers[-1]) != expected:
            return Verdict(False, f"ends with {numbers[-1]}; expected {expected}")
        return Verdict(True)


def _draw_pair(rng: random.Random, split: Split) -> tuple[int, int]:
    """A pair of two-digit numbers of the split; in training a few have an operand below ten."""
    lowest = 0 if split == "train" and rng.random() < SMALL_SHARE else 10
    while True:
        first, second = rng.randint(lowest, 99), rng.randint(lowest, 99)
        if lowest == 0 and rng.random() < 0.7:
            second = rng.randint(0, 9)
        if is_reserved(first, second) == (split == "test"):
            return first, second


TASKS = (Arithmetic(),)

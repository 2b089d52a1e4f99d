"""Second turns: recalling what was told, going on about soy sauce, saying it again or in the other language.

Only the last answer is judged. Knows nothing of system prompts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from telechat.data.demo.follow_up_slots import SLOTS, Slot
from telechat.data.demo.greetings import GREETINGS
from telechat.data.demo.identity import IDENTITY
from telechat.data.demo.intents import (
    Intent,
    IntentTask,
    Wordings,
    check_text,
    framed,
    says_value,
    text_facts,
)
from telechat.data.demo.soy_sauce import SOY_SAUCE
from telechat.data.demo.task import Message, Row, Split, Task, Verdict
from telechat.data.demo.wording import Language, dress, split_covered

_LANGUAGES: tuple[Language, Language] = ("zh", "en")
_SAUCE_FRAMES_ZH = (
    "那{}用哪种？", "{}呢？", "那{}呢？", "{}用哪种？", "{}该用哪种？", "那{}该用哪一种？",
    "如果{}，该用哪种？", "我要{}，用哪种好？", "{}用哪个好？", "想{}的话用哪个？",
)  # fmt: skip
_SAUCE_FRAMES_EN = (
    "Which one for {}?", "Which one should I use for {}?", "What about {}?", "And for {}?",
    "Which is better for {}?", "Which one is right for {}?", "I want it for {}, which one?",
    "And what should I use for {}?", "Which do I need for {}?", "If I need it for {}, which one?",
)  # fmt: skip
_LIGHT_ZH = (
    "炒青菜", "炒白菜", "炒鸡蛋", "炒豆芽", "炒黄瓜", "拌黄瓜", "拌凉菜", "凉拌黄瓜", "凉拌豆芽", "凉拌豆腐",
    "拌豆腐", "拌面", "拌凉面", "蘸饺子", "做饺子蘸料", "做蘸料", "清蒸鱼", "蒸鱼", "蒸鸡蛋", "清蒸鸡",
    "做凉菜", "做凉面", "炒菜调味", "做汤调味", "调味", "提鲜", "给汤提鲜", "给菜提鲜", "给凉菜调味",
    "煮面调味",
)  # fmt: skip
_DARK_ZH = (
    "做红烧肉", "红烧排骨", "做红烧鱼", "红烧肉", "红烧鱼", "做红烧排骨", "红烧牛肉", "卤肉", "卤蛋",
    "卤牛肉", "做卤肉", "做卤蛋", "卤鸡翅", "红烧鸡翅", "酱牛肉", "做酱牛肉", "炖牛肉", "炖排骨", "炖猪蹄",
    "红烧猪蹄", "卤猪蹄", "给肉上色", "上色", "给菜上色", "给红烧肉上色", "给炒饭上色", "让肉颜色更深",
    "让菜颜色深一点", "让颜色更深", "让颜色深一点",
)  # fmt: skip
_LIGHT_EN = (
    "fried vegetables", "fried greens", "fried eggs", "cold noodles", "cold cucumber", "cold tofu",
    "cold dishes", "salad", "a cold salad", "a cucumber salad", "a tofu salad", "dumplings", "dipping",
    "dipping dumplings", "a dipping sauce", "steamed fish", "steamed eggs", "steamed tofu",
    "steamed vegetables", "seasoning", "seasoning soup", "seasoning a salad", "seasoning vegetables", "soup",
    "a vegetable soup", "vegetable dishes", "seasoning noodles", "noodles", "a fish soup", "fresh taste",
    "a fresh and salty taste", "a salty taste",
)  # fmt: skip
_DARK_EN = (
    "braised pork", "braised beef", "braised fish", "braised ribs", "braised meat", "braising",
    "braising pork", "braising beef", "braising ribs", "stewed beef", "stewed pork", "stewed meat",
    "stewed ribs", "stewing", "stewing meat", "a beef stew", "a pork stew", "a meat stew", "a dark color",
    "a darker color", "adding color", "adding dark color", "adding color to meat", "adding color to rice",
    "making meat darker", "making rice darker", "making pork darker", "a darker stew", "dark meat",
    "dark braised meat", "coloring meat", "coloring pork",
)  # fmt: skip
_SAY_ENGLISH = (
    "说英文。", "请说英文。", "用英文说。", "用英文再说一遍。", "请用英文再说一遍。", "用英文回答。",
    "请用英文回答。", "用英文再回答一遍。", "换成英文。", "请换成英文。", "翻译成英文。", "请翻译成英文。",
    "把它翻译成英文。", "英文怎么说？", "用英文怎么说？", "这用英文怎么说？", "能用英文说吗？",
    "可以用英文说吗？", "能用英文再说一遍吗？", "可以翻译成英文吗？", "能翻译成英文吗？",
    "可以用英文回答吗？", "改用英文。", "请改用英文回答。", "改成英文。", "请改成英文。",
    "Say it in English.", "Please say it in English.", "In English, please.", "Say that in English.",
    "Please say that in English.", "Say it again in English.", "Please say that again in English.",
    "Translate it into English.", "Translate that into English.", "Please translate it into English.",
    "Please translate that into English.", "Can you say it in English?", "Can you say that in English?",
    "Could you say it in English?", "Can you translate it into English?",
    "Could you translate that into English?", "Now in English.", "Now in English, please.",
    "Now say it in English.", "Now say that again in English.", "Repeat it in English.",
    "Repeat that in English.", "Please repeat it in English.", "Could you repeat that in English?",
    "How do you say it in English?", "How do you say that in English?",
)  # fmt: skip
_SAY_CHINESE = tuple(
    wording.replace("英文", "中文").replace("English", "Chinese") for wording in _SAY_ENGLISH
)
_REPEAT_ZH = (
    "再说一遍。", "请再说一遍。", "再说一次。", "请再说一次。", "重复一遍。", "请重复一遍。", "重复一次。",
    "请重复一次。", "再回答一遍。", "再回答一次。", "请再回答一次。", "能再说一遍吗？", "可以再说一遍吗？",
    "能再说一次吗？", "可以再说一次吗？", "能重复一遍吗？", "可以重复一次吗？", "我没看清，再说一遍。",
    "我没看清，请再说一次。", "没看清，请重复一遍。", "没听清，再说一次。", "我没听清，再说一遍。",
    "没听清，请再说一遍。", "我没听清，请重复一次。", "你刚才说什么？", "你刚才说了什么？", "刚才你说什么？",
    "刚才你说了什么？",
)  # fmt: skip
_REPEAT_EN = (
    "Say it again.", "Say that again.", "Please say it again.", "Please say that again.", "Repeat that.",
    "Repeat it.", "Please repeat that.", "Please repeat it.", "Once more.", "Once more, please.",
    "Say it once more.", "Say that once more.", "Please say it once more.", "Please say that once more.",
    "Can you repeat that?", "Can you repeat it?", "Can you say it again?", "Can you say that again?",
    "Could you repeat that?", "Could you repeat it?", "Could you say that again?",
    "Could you say it once more?", "What did you say?", "What did you just say?", "Repeat it once more.",
    "Please repeat that once more.",
)  # fmt: skip

_ANSWERS: dict[tuple[str, Language], str] = {
    ("light", "zh"): "用生抽，它颜色浅、味道咸鲜，适合调味。",
    ("dark", "zh"): "用老抽，它颜色深、咸中带甜，适合上色。",
    ("light", "en"): "Use light soy sauce: it is salty and fresh, good for seasoning.",
    ("dark", "en"): "Use dark soy sauce: it is darker and a little sweet, good for color.",
}

_UNTOLD: dict[Language, str] = {"zh": "你还没有告诉我。", "en": "You have not told me that yet."}


def _sauce_intent(name: str, language: Language, frames: Sequence[str], dishes: Sequence[str]) -> Intent:
    """Which soy sauce goes with a dish; naming the other one as well is wrong."""
    words = {"zh": {"light": "生抽", "dark": "老抽"}, "en": {"light": "light soy", "dark": "dark soy"}}[
        language
    ]
    other = words["dark" if name == "light" else "light"]
    return Intent(
        name=name,
        language=language,
        answer=_ANSWERS[name, language],
        required=((words[name],),),
        forbidden=(other,),
        wordings=framed(frames, dishes),
    )


_SAUCE = (
    _sauce_intent("light", "zh", _SAUCE_FRAMES_ZH, _LIGHT_ZH),
    _sauce_intent("dark", "zh", _SAUCE_FRAMES_ZH, _DARK_ZH),
    _sauce_intent("light", "en", _SAUCE_FRAMES_EN, _LIGHT_EN),
    _sauce_intent("dark", "en", _SAUCE_FRAMES_EN, _DARK_EN),
)
_SAY_IN: dict[Language, Wordings] = {"zh": split_covered(_SAY_CHINESE), "en": split_covered(_SAY_ENGLISH)}
_REPEAT: dict[Language, Wordings] = {"zh": split_covered(_REPEAT_ZH), "en": split_covered(_REPEAT_EN)}
_OPENERS: tuple[tuple[IntentTask, str], ...] = (
    (SOY_SAUCE, "soy_sauce"), (IDENTITY, "name"), (IDENTITY, "maker"), (IDENTITY, "human"),
    (GREETINGS, "hello"), (GREETINGS, "how"), (IDENTITY, "ability"),
)  # fmt: skip


class FollowUpTask:
    """Two turns (three when two facts are told); the last question needs the turns before it."""

    name = "follow_up"
    share = 2.0

    def wordings(self, split: Split) -> list[str]:
        """Wordings of the last turn."""
        asks = [ask for slots in SLOTS.values() for slot in slots for ask in slot.asks[split]]
        sauce = [wording for intent in _SAUCE for wording in intent.wordings[split]]
        again = [
            wording
            for group in (_SAY_IN, _REPEAT)
            for language in _LANGUAGES
            for wording in group[language][split]
        ]
        return asks + sauce + again

    def tellings(self, split: Split) -> list[str]:
        """Wordings in which a fact is told, with `{}` for its value."""
        return [tell for slots in SLOTS.values() for slot in slots for tell in slot.tells[split]]

    def draw(self, rng: random.Random, split: Split) -> Row:
        """One conversation of two or three turns, all of `split`."""
        kind = rng.choices((_recall, _sauce, _other_language, _repeat, _untold), weights=(62, 15, 14, 5, 4))[
            0
        ]
        return kind(rng, split)

    def judge(self, row: Row, answer: Message) -> Verdict:
        """Whether the last answer holds the value told before, or says what was asked for."""
        verdict = check_text(row, answer)
        value = row.facts.get("value")
        if verdict.correct and value is not None and not says_value(row, answer, value):
            return Verdict(False, f"does not say {value}")
        return verdict


def _row(messages: list[Message], facts: dict[str, object], wording: str) -> Row:
    return Row(task=FollowUpTask.name, messages=messages, facts=facts, wording=wording)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _sentence(slot: Slot, value: str) -> str:
    """The fact as a sentence, `你叫小明。` or `Your name is Ann.`"""
    clause = slot.fact.format(value)
    return f"{clause}。" if slot.language == "zh" else f"{clause[:1].upper()}{clause[1:]}."


def _told(rng: random.Random, slot: Slot, value: str, split: Split) -> list[Message]:
    """A turn in which the fact is told and acknowledged."""
    # Dressed before the value goes in: a name in small letters could not be copied with its capital.
    told = dress(rng, rng.choice(slot.tells[split]), slot.language, openings=False).format(value)
    clause = slot.fact.format(value)
    noted = (
        f"好的，我记住了，{clause}。" if slot.language == "zh" else f"Okay, I will remember that {clause}."
    )
    return [_user(told), _assistant(noted)]


def _recall(rng: random.Random, split: Split) -> Row:
    """One fact told, or two, and one asked for."""
    language = rng.choice(_LANGUAGES)
    slots = rng.sample(SLOTS[language], 2 if rng.random() < 0.25 else 1)
    values = [slot.make(rng, split) for slot in slots]
    messages = [
        turn for slot, value in zip(slots, values, strict=True) for turn in _told(rng, slot, value, split)
    ]
    index = rng.randrange(len(slots))
    slot, value = slots[index], values[index]
    ask = rng.choice(slot.asks[split])
    messages += [_user(dress(rng, ask, language)), _assistant(_sentence(slot, value))]
    return _row(messages, text_facts(language, ((value,),), names=(value,)) | {"value": value}, ask)


def _opening_turn(
    rng: random.Random, split: Split, task: IntentTask, name: str, language: Language
) -> list[Message]:
    """A first turn taken from another task."""
    intent = task.intent(name, language)
    question = dress(rng, rng.choice(intent.wordings[split]), language, openings=task.openings)
    return [_user(question), _assistant(intent.answer)]


def _sauce(rng: random.Random, split: Split) -> Row:
    """After the soy-sauce question: which of the two for a dish."""
    intent = rng.choice(_SAUCE)
    wording = rng.choice(intent.wordings[split])
    question = dress(rng, wording, intent.language, openings=False)
    messages = _opening_turn(rng, split, SOY_SAUCE, "soy_sauce", intent.language)
    messages += [_user(question), _assistant(intent.answer)]
    return _row(messages, text_facts(intent.language, intent.required, intent.forbidden), wording)


def _other_language(rng: random.Random, split: Split) -> Row:
    """The last answer once more, in the other language."""
    task, name = rng.choice(_OPENERS)
    target = rng.choice(_LANGUAGES)
    messages = _opening_turn(rng, split, task, name, "en" if target == "zh" else "zh")
    wording = rng.choice(_SAY_IN[target][split])
    asked_in: Language = "en" if wording.isascii() else "zh"
    intent = task.intent(name, target)
    messages += [_user(dress(rng, wording, asked_in, openings=False)), _assistant(intent.answer)]
    return _row(messages, text_facts(target, intent.required, intent.forbidden), wording)


def _repeat(rng: random.Random, split: Split) -> Row:
    """The last answer once more."""
    task, name = rng.choice(_OPENERS)
    language = rng.choice(_LANGUAGES)
    messages = _opening_turn(rng, split, task, name, language)
    wording = rng.choice(_REPEAT[language][split])
    intent = task.intent(name, language)
    messages += [_user(dress(rng, wording, language, openings=False)), _assistant(intent.answer)]
    return _row(messages, text_facts(language, intent.required, intent.forbidden), wording)


def _untold(rng: random.Random, split: Split) -> Row:
    """Asked for a fact that nobody told: the answer says so and makes nothing up."""
    language = rng.choice(_LANGUAGES)
    ask = rng.choice(rng.choice(SLOTS[language]).asks[split])
    messages = _opening_turn(rng, split, GREETINGS, "hello", language) if rng.random() < 0.5 else []
    messages += [_user(dress(rng, ask, language)), _assistant(_UNTOLD[language])]
    required = (("没有告诉我",),) if language == "zh" else (("have not told me",),)
    return _row(messages, text_facts(language, required), ask)


FOLLOW_UP = FollowUpTask()
TASKS: tuple[Task, ...] = (FOLLOW_UP,)

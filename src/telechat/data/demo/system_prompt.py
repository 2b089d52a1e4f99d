"""System prompts obeyed: a name given to the assistant, a language to answer in, or both.

The questions are those of other tasks, split as they are there. Names are made up: they can only be copied.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from telechat.data.demo.greetings import GREETINGS
from telechat.data.demo.identity import IDENTITY
from telechat.data.demo.intents import IntentTask, Wordings, check_text, says_value, text_facts
from telechat.data.demo.names import made_up_name
from telechat.data.demo.soy_sauce import SOY_SAUCE
from telechat.data.demo.task import Message, Row, Split, Task, Verdict
from telechat.data.demo.wording import Language, dress, split_covered

_NAME_ZH = (
    "你叫{}。", "你的名字是{}。", "你的名字叫{}。", "你是{}。", "你是助手{}。", "你是智能助手{}。",
    "你是一个名叫{}的助手。", "你是一个叫{}的助手。", "你是一个名叫{}的智能助手。", "你是名叫{}的聊天助手。",
    "你是叫{}的聊天助手。", "你现在叫{}。", "你现在的名字是{}。", "从现在起，你叫{}。",
    "从现在起，你的名字是{}。", "从现在起你就是{}。", "从现在开始，你叫{}。", "从现在开始，你的名字叫{}。",
    "请记住，你叫{}。", "请记住，你的名字是{}。", "记住，你是{}。", "记住，你的名字叫{}。", "请你扮演{}。",
    "请扮演一个名叫{}的助手。", "请扮演叫{}的智能助手。", "用户会叫你{}。", "大家都叫你{}。",
    "大家会叫你{}。", "请以{}的身份回答。", "请以{}的名字回答用户。", "你以{}的身份和用户聊天。",
    "你以{}的名字和用户聊天。", "这个助手叫{}。", "这个助手的名字是{}。", "这个聊天助手名叫{}。",
)  # fmt: skip
_NAME_EN = (
    "You are {}.", "Your name is {}.", "You are called {}.", "You are an assistant called {}.",
    "You are an assistant named {}.", "You are a helpful assistant called {}.",
    "You are a helpful assistant named {}.", "You are {}, an assistant.", "You are {}, a helpful assistant.",
    "You are {}, a chat assistant.", "You are a chat assistant called {}.",
    "You are a chat assistant named {}.", "From now on you are {}.", "From now on your name is {}.",
    "From now on you are called {}.", "Remember: you are {}.", "Remember: your name is {}.",
    "Remember that you are called {}.", "Remember that your name is {}.",
    "Please remember that your name is {}.", "Please remember that you are {}.", "Act as {}.",
    "Please act as {}.", "Act as an assistant called {}.", "Please act as an assistant named {}.",
    "Users call you {}.", "The user calls you {}.", "The user will call you {}.", "Users will call you {}.",
    "Answer as {}.", "Please answer as {}.", "Answer the user as {}.", "The name of this assistant is {}.",
    "This assistant is called {}.", "The name of the assistant is {}.",
)  # fmt: skip
_TO_ZH_ZH = (
    "请只用中文回答。", "请用中文回答。", "只用中文回答。", "你只能用中文回答。", "请始终用中文回答。",
    "始终用中文回答。", "你必须用中文回答。", "所有问题都用中文回答。", "无论用户说什么，都用中文回答。",
    "请用中文回复。", "请只用中文回复。", "只用中文回复。", "请始终用中文回复。", "你只能用中文回复。",
    "你必须用中文回复用户。", "请只说中文。", "你只说中文。", "你只会说中文。", "你只能说中文。",
    "请用中文和用户聊天。", "只用中文和用户聊天。", "请用中文回答用户的问题。", "请只用中文回答用户的问题。",
    "回答必须用中文。", "回复必须用中文。",
)  # fmt: skip
_TO_EN_ZH = tuple(wording.replace("中文", "英文") for wording in _TO_ZH_ZH)
_TO_EN_EN = (
    "Answer only in English.", "Answer in English.", "Always answer in English.",
    "Please answer in English.", "Please answer only in English.", "Please always answer in English.",
    "Reply in English.", "Reply only in English.", "Always reply in English.", "Please reply in English.",
    "Please reply only in English.", "Only answer in English.", "Only reply in English.",
    "You must answer in English.", "You must reply in English.", "You answer only in English.",
    "You reply only in English.", "You only speak English.", "Speak only English.", "Please speak English.",
    "Please speak only English.", "Use only English.", "Please use English.", "Please use only English.",
    "Answer all questions in English.", "Always speak English.", "Always use English.",
    "Answer every question in English.", "Reply to all questions in English.",
    "Reply to every question in English.",
)  # fmt: skip
_TO_ZH_EN = tuple(wording.replace("English", "Chinese") for wording in _TO_EN_EN)

_NAMING: dict[Language, Wordings] = {"zh": split_covered(_NAME_ZH), "en": split_covered(_NAME_EN)}
_LANGUAGE: dict[tuple[Language, Language], Wordings] = {
    ("zh", "zh"): split_covered(_TO_ZH_ZH),
    ("zh", "en"): split_covered(_TO_EN_ZH),
    ("en", "en"): split_covered(_TO_EN_EN),
    ("en", "zh"): split_covered(_TO_ZH_EN),
}

# What is asked: (task, intent, weight when a name was given, weight when only a language was).
_QUESTIONS: tuple[tuple[IntentTask, str, float, float], ...] = (
    (IDENTITY, "name", 5.0, 2.0),
    (GREETINGS, "hello", 3.0, 2.0),
    (SOY_SAUCE, "soy_sauce", 1.0, 2.0),
    (GREETINGS, "thanks", 0.5, 1.0),
    (GREETINGS, "how", 0.5, 1.0),
    (IDENTITY, "ability", 0.5, 1.0),
)
_NAMED_ANSWERS: dict[tuple[str, Language], str] = {
    ("name", "zh"): "我叫{}，很高兴为你服务。",
    ("name", "en"): "My name is {}. I am glad to help you.",
    ("hello", "zh"): "你好！我是{}，请问有什么可以帮你？",
    ("hello", "en"): "Hello! I am {}. How can I help you?",
}
_LANGUAGES: tuple[Language, Language] = ("zh", "en")


@dataclass(frozen=True)
class _Order:
    """A system prompt: its text, its wording, the name and the answer's language that it asks for, if any."""

    text: str
    wording: str
    name: str | None
    language: Language | None


class SystemPromptTask:
    """A system prompt, a question of another task, and the answer that obeys."""

    name = "system_prompt"
    share = 1.5

    def wordings(self, split: Split) -> list[str]:
        """Wordings of the system prompts; `{}` stands for the name, a prompt with both counts by its name
        wording.
        """
        names = [wording for group in _NAMING.values() for wording in group[split]]
        return names + [wording for group in _LANGUAGE.values() for wording in group[split]]

    def draw(self, rng: random.Random, split: Split) -> Row:
        """One obeyed system prompt; wordings of prompt and question and the name all belong to `split`."""
        order = _draw_order(rng, split)
        user_language = rng.choice(_LANGUAGES)
        weights = [named if order.name else unnamed for _, _, named, unnamed in _QUESTIONS]
        task, intent_name, _, _ = rng.choices(_QUESTIONS, weights=weights)[0]
        asked = task.intent(intent_name, user_language)
        question = dress(rng, rng.choice(asked.wordings[split]), user_language, openings=task.openings)
        language = order.language or user_language
        target = task.intent(intent_name, language)
        answer, required = target.answer, target.required
        if order.name is not None and (intent_name, language) in _NAMED_ANSWERS:
            answer, required = _NAMED_ANSWERS[intent_name, language].format(order.name), ((order.name,),)
        return Row(
            task=self.name,
            messages=[
                {"role": "system", "content": order.text},
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ],
            facts=text_facts(language, required, names=(order.name,) if order.name else ())
            | {"exact": order.name if order.name and order.name in answer else None},
            wording=order.wording,
        )

    def judge(self, row: Row, answer: Message) -> Verdict:
        """Whether the answer gives the ordered name, whole and unaltered, in the ordered language."""
        verdict = check_text(row, answer)
        name = row.facts["exact"]
        if verdict.correct and name is not None and not says_value(row, answer, name):
            return Verdict(False, f"not the name {name}")
        return verdict


def _draw_order(rng: random.Random, split: Split) -> _Order:
    """A system prompt of `split` that gives a name, a language or both."""
    language = rng.choice(_LANGUAGES)
    kind = rng.choices(("name", "language", "both"), weights=(3, 2, 2))[0]
    if kind == "language":
        target = rng.choice(_LANGUAGES)
        wording = rng.choice(_LANGUAGE[language, target][split])
        return _Order(wording, wording, None, target)
    naming = rng.choice(_NAMING[language][split])
    # Now and then a name in the other script: it is to be copied all the same.
    script = language if rng.random() < 0.85 else ("en" if language == "zh" else "zh")
    name = made_up_name(rng, split, script)
    text = naming.format(name)
    if kind == "name":
        return _Order(text, naming, name, None)
    target = rng.choice(_LANGUAGES)
    demand = rng.choice(_LANGUAGE[language, target][split])
    return _Order(text + (" " if language == "en" else "") + demand, naming, name, target)


SYSTEM_PROMPT = SystemPromptTask()
TASKS: tuple[Task, ...] = (SYSTEM_PROMPT,)

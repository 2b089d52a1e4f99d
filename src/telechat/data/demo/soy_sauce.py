"""The soy-sauce question: how 生抽 and 老抽 differ in colour, taste and use. Knows no follow-up questions."""

from __future__ import annotations

from telechat.data.demo.intents import SPLITS, Intent, IntentTask, Wordings
from telechat.data.demo.task import Task
from telechat.data.demo.wording import compose, split_covered

BROWSER_QUESTION = "生抽与老抽的区别？"  # the question that the page's test asks; trained

ANSWER_ZH = (
    "生抽和老抽的区别：\n1. 颜色：生抽颜色浅，老抽颜色深。\n2. 味道：生抽咸鲜，老抽咸中带甜。\n"
    "3. 用途：生抽用来调味，老抽用来上色。"
)
ANSWER_EN = (
    "Light and dark soy sauce differ:\n1. Color: light soy sauce is lighter, dark soy sauce is darker.\n"
    "2. Taste: light is salty and fresh, dark is a little sweet.\n"
    "3. Use: light for seasoning, dark for color."
)
_REQUIRED_ZH = (
    ("颜色",), ("味道",), ("用途",), ("生抽颜色浅",), ("老抽颜色深",),
    ("生抽咸鲜",), ("老抽咸中带甜",), ("生抽用来调味",), ("老抽用来上色",)
)  # fmt: skip
_REQUIRED_EN = (
    ("color", "colour"), ("taste",), ("use",), ("light soy sauce is lighter",), ("dark soy sauce is darker",),
    ("light is salty",), ("sweet",), ("light for seasoning",), ("dark for color",),
)  # fmt: skip

_PAIRS_ZH = ("生抽与老抽", "生抽和老抽", "生抽跟老抽", "老抽与生抽", "老抽和生抽", "老抽跟生抽", "生抽、老抽")
_QUESTIONS_ZH = (
    "的区别？", "有什么区别？", "有什么不同？", "有什么不一样？", "有何区别？", "的区别是什么？",
    "的区别在哪里？", "的区别有哪些？", "有哪些区别？", "的不同之处是什么？", "有哪些不同？",
    "的差别是什么？", "有什么差别？", "的差别在哪里？", "有哪些差别？", "怎么区分？", "怎样区分？",
    "如何区分？", "有啥区别？", "有啥不同？", "有哪些不同之处？", "哪里不同？", "哪里不一样？", "有何不同？",
    "的不同在哪里？", "该怎么区分？", "一样吗？", "是一样的吗？", "有区别吗？", "有什么不同之处？",
)  # fmt: skip
_WHOLE_ZH = (
    "说说生抽和老抽的区别。", "说一说生抽与老抽的区别。", "介绍一下生抽和老抽的区别。",
    "讲讲生抽和老抽的不同。", "讲一讲老抽和生抽的区别。", "解释一下生抽和老抽的区别。",
    "告诉我生抽和老抽的区别。", "告诉我老抽和生抽有什么不同。", "请解释生抽与老抽的不同。",
    "请说明生抽和老抽的区别。", "请介绍生抽与老抽的不同之处。", "请讲讲生抽与老抽的差别。",
    "什么是生抽，什么是老抽？", "生抽是什么，老抽又是什么？", "我分不清生抽和老抽。",
    "我分不清老抽和生抽，怎么办？", "做菜时怎么区分生抽和老抽？", "做菜用的生抽和老抽有什么区别？",
    "厨房里的生抽和老抽有什么不同？", "酱油里的生抽和老抽有什么区别？", "生抽酱油和老抽酱油有什么区别？",
    "生抽酱油和老抽酱油的不同在哪里？", "酱油的生抽和老抽怎么区分？", "比较一下生抽和老抽。",
    "比较生抽与老抽。", "请比较老抽和生抽。", "请比较一下生抽与老抽的不同。", "对比一下生抽和老抽。",
    "请对比生抽和老抽。", "对比生抽和老抽的不同。",
)  # fmt: skip
_PAIRS_EN = (
    "light soy sauce and dark soy sauce", "light and dark soy sauce", "dark soy sauce and light soy sauce",
    "dark and light soy sauce", "light soy and dark soy",
)  # fmt: skip
_BEFORE_EN = (
    "What is the difference between ", "What's the difference between ", "What are the differences between ",
    "How do I tell the difference between ", "Tell me the difference between ",
    "Tell me the differences between ", "Explain the difference between ",
    "Explain the differences between ", "Please explain the difference between ",
    "Describe the difference between ", "Describe the differences between ",
    "Is there a difference between ", "Is there any difference between ", "Are there differences between ",
    "Are there any differences between ", "Can you explain the difference between ",
    "Can you explain the differences between ", "Can you tell me the difference between ",
    "Could you explain the difference between ", "Could you tell me the difference between ",
    "Could you describe the difference between ", "What is different between ", "Compare ",
    "Please compare ", "Can you compare ", "Could you compare ", "I do not know the difference between ",
    "I want to know the difference between ", "I would like to know the difference between ",
    "How can I tell the difference between ",
)  # fmt: skip
_WHOLE_EN = (
    "How is light soy sauce different from dark soy sauce?",
    "How is dark soy sauce different from light soy sauce?",
    "How does light soy sauce differ from dark soy sauce?",
    "How does dark soy sauce differ from light soy sauce?", "How do light and dark soy sauce differ?",
    "How do dark and light soy sauce differ?", "Light soy sauce or dark soy sauce: what is the difference?",
    "Dark soy sauce or light soy sauce: what is the difference?",
    "Light or dark soy sauce: what is the difference?", "Is light soy sauce the same as dark soy sauce?",
    "Is dark soy sauce the same as light soy sauce?", "Are light and dark soy sauce the same?",
    "Are dark and light soy sauce the same?", "Are light soy sauce and dark soy sauce different?",
    "Are dark soy sauce and light soy sauce different?", "How are light and dark soy sauce different?",
    "How are dark and light soy sauce different?", "In what way do light and dark soy sauce differ?",
    "In what way are light and dark soy sauce different?",
    "In what way does light soy sauce differ from dark soy sauce?",
)  # fmt: skip


def _with_pairs() -> tuple[Wordings, Wordings]:
    """Chinese and English wordings: what is asked is split, so a held-out way of asking meets every pair."""
    asks_zh, asks_en = split_covered(_QUESTIONS_ZH), split_covered(_BEFORE_EN)
    whole_zh, whole_en = split_covered(_WHOLE_ZH), split_covered(_WHOLE_EN)
    zh: Wordings = {split: compose(_PAIRS_ZH, asks_zh[split]) + whole_zh[split] for split in SPLITS}
    en: Wordings = {
        split: [ask + pair + _closing(ask) for ask in asks_en[split] for pair in _PAIRS_EN] + whole_en[split]
        for split in SPLITS
    }
    return zh, en


def _closing(ask: str) -> str:
    """Full stop after a request, question mark after a question."""
    return "." if ask.startswith(("Tell", "Explain", "Please", "Describe", "Compare", "I ")) else "?"


_ZH, _EN = _with_pairs()
INTENTS: tuple[Intent, ...] = (
    Intent(name="soy_sauce", language="zh", answer=ANSWER_ZH, required=_REQUIRED_ZH, wordings=_ZH),
    Intent(name="soy_sauce", language="en", answer=ANSWER_EN, required=_REQUIRED_EN, wordings=_EN),
)
SOY_SAUCE = IntentTask(name="soy_sauce", share=0.6, intents=INTENTS)
TASKS: tuple[Task, ...] = (SOY_SAUCE,)

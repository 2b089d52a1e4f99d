"""What a user tells in one turn and asks for in the next: slots with their values, tellings and askings.

Values come from pools so wide that the model has to copy them. Knows nothing of conversations.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from telechat.data.demo.intents import Wordings
from telechat.data.demo.names import made_up_name
from telechat.data.demo.task import Split
from telechat.data.demo.values import (
    CITIES_EN,
    CITIES_ZH,
    DATES_EN,
    DATES_ZH,
    GOODS_EN,
    GOODS_ZH,
    PEOPLE_EN,
    PEOPLE_ZH,
    TOPICS_EN,
    TOPICS_ZH,
    Pool,
    pick,
    split_values,
)
from telechat.data.demo.wording import Language, split_covered

Maker = Callable[[random.Random, Split], str]


def _words(text: str) -> list[str]:
    return text.split()


_COLOURS_ZH = split_values(
    shade + colour
    for shade in _words("深 浅 亮 暗 淡 粉 墨 银 金 嫩")
    for colour in _words("红色 黄色 绿色 蓝色 紫色 灰色 棕色 青色")
)
_COLOURS_EN = split_values(
    f"{shade} {colour}"
    for shade in _words("light dark bright pale deep soft warm cool")
    for colour in _words("red yellow green blue purple gray brown orange pink")
)
_DISHES_ZH = split_values(
    way + thing
    for way in _words("红烧 清炒 凉拌 清蒸 油炸 水煮 炖 烤 煎 爆炒")
    for thing in _words("豆腐 白菜 茄子 土豆 排骨 牛肉 鱼 鸡翅 虾 蘑菇 萝卜 鸡蛋 羊肉 南瓜 冬瓜")
)
_DISHES_EN = split_values(
    f"{way} {thing}"
    for way in _words("fried baked boiled grilled roast cold hot sweet spicy fresh")
    for thing in _words("rice noodles beef chicken fish beans potatoes carrots eggs bread soup tofu pork")
)
_NUMBERS = split_values(str(number) for number in range(10, 10_000))
_AGES = split_values(str(age) for age in range(6, 100))


def _from(pool: Pool) -> Maker:
    return lambda rng, split: pick(rng, pool, split)


def _name(language: Language, people: Pool) -> Maker:
    """Mostly made-up names, some of the shape that people have."""
    return lambda rng, split: (
        pick(rng, people, split) if rng.random() < 0.35 else made_up_name(rng, split, language)
    )


def _thing_en(rng: random.Random, split: Split) -> str:
    """Something bought, with its article."""
    thing = pick(rng, GOODS_EN, split)
    return ("an " if thing[0] in "aeiou" else "a ") + thing


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One kind of fact in one language.

    Attributes:
        kind: what the fact is about; unique within the language.
        language: of tellings, askings and answers.
        make: draws a value of a split.
        fact: the fact as the assistant says it, a clause with one `{}`.
        tells: what the user says, with one `{}`, by split.
        asks: the question about it, by split.
    """

    kind: str
    language: Language
    make: Maker
    fact: str
    tells: Wordings
    asks: Wordings


_Entry = tuple[str, Maker, str, tuple[str, ...], tuple[str, ...]]
_ZH: tuple[_Entry, ...] = (
    ("name", _name("zh", PEOPLE_ZH), "你叫{}", (
        "我叫{}。", "我的名字是{}。", "我的名字叫{}。", "我是{}。", "我的姓名是{}。", "我姓名是{}。",
        "请记住，我叫{}。", "请记住我的名字是{}。", "大家都叫我{}。", "请叫我{}。",
    ), (
        "我叫什么名字？", "我叫什么？", "我的名字是什么？", "我是谁？", "你还记得我叫什么吗？",
        "你记得我的名字吗？", "你知道我叫什么名字吗？", "还记得我是谁吗？", "你知道我是谁吗？",
        "我的名字叫什么？",
    )),
    ("city", _from(CITIES_ZH), "你住在{}", (
        "我住在{}。", "我家在{}。", "我现在住在{}。", "我的家在{}。", "我家住在{}。", "我居住在{}。",
        "我现在居住在{}。", "请记住，我住在{}。", "请记住我家在{}。", "我的家现在在{}。",
    ), (
        "我住在哪里？", "我家在哪里？", "我住在哪个城市？", "我的家在哪里？", "我家在哪个城市？",
        "你记得我住在哪里吗？", "你还记得我家在哪里吗？", "你知道我住在哪个城市吗？", "我现在住在哪里？",
        "我现在住在哪个城市？",
    )),
    ("dish", _from(_DISHES_ZH), "你喜欢吃{}", (
        "我喜欢吃{}。", "我爱吃{}。", "我最喜欢吃{}。", "我最爱吃{}。", "我很喜欢吃{}。",
        "我最喜欢的菜是{}。", "我最爱吃的菜是{}。", "我喜欢的菜是{}。", "我特别喜欢吃{}。", "我特别爱吃{}。",
    ), (
        "我喜欢吃什么？", "我爱吃什么？", "我最喜欢吃什么？", "我最爱吃什么？", "我最喜欢的菜是什么？",
        "我喜欢的菜是什么？", "我最爱吃什么菜？", "你记得我喜欢吃什么吗？", "你还记得我爱吃什么吗？",
        "你知道我喜欢吃什么菜吗？",
    )),
    ("hobby", _from(TOPICS_ZH), "你的爱好是{}", (
        "我的爱好是{}。", "我有个爱好，是{}。", "我的爱好就是{}。", "我最大的爱好是{}。",
        "我最大的爱好就是{}。", "说到爱好，我喜欢{}。", "我的业余爱好是{}。", "我业余时间喜欢{}。",
        "业余时间我喜欢{}。", "我有空时喜欢{}。", "有空时我喜欢{}。", "我有时间就喜欢{}。",
    ), (
        "我的爱好是什么？", "我有什么爱好？", "我最大的爱好是什么？", "你记得我的爱好吗？",
        "你知道我的爱好是什么吗？", "你还记得我有什么爱好吗？", "我的业余爱好是什么？",
        "你知道我有什么爱好吗？", "你还记得我的爱好是什么吗？", "我业余有什么爱好？",
    )),
    ("colour", _from(_COLOURS_ZH), "你喜欢的颜色是{}", (
        "我喜欢的颜色是{}。", "我最喜欢的颜色是{}。", "我最喜欢{}。", "我喜欢{}。", "我最爱的颜色是{}。",
        "我最爱{}。", "我很喜欢{}。", "我很喜欢{}这种颜色。", "我喜欢{}这种颜色。", "我最喜欢{}这种颜色。",
    ), (
        "我喜欢什么颜色？", "我喜欢哪种颜色？", "我最喜欢什么颜色？", "我最喜欢哪种颜色？",
        "我最喜欢的颜色是什么？", "我喜欢的颜色是什么？", "你记得我喜欢什么颜色吗？",
        "你还记得我喜欢哪种颜色吗？", "你知道我最喜欢什么颜色吗？", "你还记得我最喜欢的颜色吗？",
    )),
    ("number", _from(_NUMBERS), "你的数字是{}", (
        "我的数字是{}。", "我的幸运数字是{}。", "请记住数字{}。", "请记住这个数字：{}。",
        "记住这个数字：{}。", "我选的数字是{}。", "我想的数字是{}。", "我的号码是{}。",
        "请记住我的号码：{}。", "记住我的数字：{}。",
    ), (
        "我的数字是多少？", "我的幸运数字是多少？", "我的数字是什么？", "我的幸运数字是什么？",
        "我说的数字是多少？", "我说的数字是什么？", "你记得我的数字吗？", "你记得我说的数字是多少吗？",
        "刚才的数字是多少？", "我刚才说的数字是什么？", "你还记得刚才的数字吗？",
        "你还记得我刚才说的数字吗？",
    )),
    ("pet", lambda rng, split: made_up_name(rng, split, "zh"), "你的宠物叫{}", (
        "我的宠物叫{}。", "我的宠物名叫{}。", "我有一只宠物，叫{}。", "我有一只宠物，名叫{}。",
        "我家的宠物叫{}。", "我家有一只宠物，叫{}。", "我家宠物的名字是{}。", "我的宠物的名字叫{}。",
        "我养了一只宠物，叫{}。", "我家养了一只宠物，名叫{}。",
    ), (
        "我的宠物叫什么？", "我的宠物叫什么名字？", "我家的宠物叫什么？", "我家的宠物叫什么名字？",
        "我的宠物的名字是什么？", "我宠物的名字是什么？", "你记得我的宠物叫什么吗？",
        "你还记得我宠物的名字吗？", "你知道我的宠物叫什么名字吗？", "我养的宠物叫什么？",
        "你知道我养的宠物的名字吗？",
    )),
    ("age", _from(_AGES), "你今年{}岁", (
        "我今年{}岁。", "我{}岁。", "我{}岁了。", "我今年{}岁了。", "我的年龄是{}岁。", "我的年龄是{}。",
        "我现在{}岁。", "我现在{}岁了。", "今年我{}岁。", "今年我{}岁了。",
    ), (
        "我今年几岁？", "我几岁？", "我几岁了？", "我今年多大？", "我多大了？", "我的年龄是多少？",
        "你记得我几岁吗？", "你还记得我多大吗？", "你知道我的年龄吗？", "我今年多少岁？",
        "你知道我今年多少岁吗？",
    )),
    ("birthday", _from(DATES_ZH), "你的生日是{}", (
        "我的生日是{}。", "我生日是{}。", "我{}过生日。", "我的生日在{}。", "请记住，我的生日是{}。",
        "请记住我生日是{}。", "我每年{}过生日。", "我出生在{}。", "我是{}出生的。", "我在{}过生日。",
    ), (
        "我的生日是哪天？", "我的生日是什么时候？", "我生日是哪一天？", "我哪天过生日？",
        "我什么时候过生日？", "你记得我的生日吗？", "你还记得我的生日是哪天吗？",
        "你知道我生日是什么时候吗？", "我的生日是哪一天？", "你知道我哪一天过生日吗？",
    )),
    ("purchase", _from(GOODS_ZH), "你买了{}", (
        "我买了{}。", "我今天买了{}。", "今天我买了{}。", "我刚买了{}。", "我昨天买了{}。", "昨天我买了{}。",
        "我刚刚买了{}。", "我买的是{}。", "我今天买的是{}。", "我昨天买的是{}。",
    ), (
        "我买了什么？", "我买的是什么？", "我今天买了什么？", "我刚才说我买了什么？", "我刚才买了什么？",
        "你记得我买了什么吗？", "你还记得我买了什么吗？", "你知道我买的是什么吗？", "我刚才买的是什么？",
        "我买了什么东西？", "你记得我买了什么东西吗？",
    )),
)  # fmt: skip
_EN: tuple[_Entry, ...] = (
    ("name", _name("en", PEOPLE_EN), "your name is {}", (
        "My name is {}.", "I am {}.", "I'm {}.", "Call me {}.", "Please call me {}.", "You can call me {}.",
        "People call me {}.", "Please remember that my name is {}.", "Remember that I am {}.",
        "Please remember my name: {}.",
    ), (
        "What is my name?", "What's my name?", "Who am I?", "Do you remember my name?",
        "Do you know my name?", "Can you tell me my name?", "Tell me my name.", "Do you know who I am?",
        "Do you remember who I am?", "Can you tell me who I am?",
    )),
    ("city", _from(CITIES_EN), "you live in {}", (
        "I live in {}.", "My home is in {}.", "I am living in {}.", "My house is in {}.",
        "I live in the city of {}.", "My home is in the city of {}.", "Please remember that I live in {}.",
        "Remember that my home is in {}.", "I live in a house in {}.", "I now live in {}.",
        "My home is now in {}.",
    ), (
        "Where do I live?", "Where is my home?", "Which city do I live in?", "In which city do I live?",
        "What city do I live in?", "Do you remember where I live?", "Do you know where I live?",
        "Do you know where my home is?", "Do you remember which city I live in?",
        "Do you know what city I live in?",
    )),
    ("dish", _from(_DISHES_EN), "you like to eat {}", (
        "I like to eat {}.", "I love to eat {}.", "My favorite food is {}.", "My favorite dish is {}.",
        "The food I like is {}.", "I really like to eat {}.", "I really love to eat {}.",
        "The dish I like is {}.", "The dish I love is {}.", "The food I love is {}.",
    ), (
        "What do I like to eat?", "What do I love to eat?", "What is my favorite food?",
        "What is my favorite dish?", "What food do I like?", "What dish do I like?", "Which food do I like?",
        "Which dish do I love?", "Do you know my favorite food?", "Do you remember my favorite dish?",
        "Do you remember what food I like?", "Do you know what I like to eat?",
    )),
    ("hobby", _from(TOPICS_EN), "your hobby is to {}", (
        "My hobby is to {}.", "My favorite hobby is to {}.", "My only hobby is to {}.",
        "I have a hobby: to {}.", "I have one hobby: to {}.", "As a hobby I {}.", "I {} as a hobby.",
        "In my free time I {}.", "I {} in my free time.", "In my free time I like to {}.",
        "As a hobby I like to {}.",
    ), (
        "What is my hobby?", "What's my hobby?", "What is my favorite hobby?", "Which hobby do I have?",
        "What hobby do I have?", "Do you remember my hobby?", "Do you know my hobby?",
        "Do you remember what my hobby is?", "Do you know what hobby I have?",
        "Do you know my favorite hobby?",
    )),
    ("colour", _from(_COLOURS_EN), "your favorite color is {}", (
        "My favorite color is {}.", "I like the color {}.", "I love the color {}.",
        "The color I like is {}.", "The color I love is {}.", "I like {} most.", "I love {} most.",
        "The color I like most is {}.", "The color I love most is {}.", "I like the color {} most.",
    ), (
        "What is my favorite color?", "What's my favorite color?", "Which color do I like?",
        "What color do I like?", "What color do I love?", "Which color do I love most?",
        "What color do I like most?", "Do you remember my favorite color?", "Do you know my favorite color?",
        "Do you remember which color I like?", "Do you know what color I like?",
    )),
    ("number", _from(_NUMBERS), "your number is {}", (
        "My number is {}.", "My lucky number is {}.", "Remember the number {}.",
        "Please remember the number {}.", "Please remember my number: {}.", "Remember my number: {}.",
        "The number is {}.", "My lucky number is always {}.", "My number is always {}.",
        "Remember this number: {}.", "Please remember this number: {}.",
    ), (
        "What is my number?", "What's my number?", "What is my lucky number?", "What is the number?",
        "What's the number?", "What was my number?", "What was the number?", "Do you remember my number?",
        "Do you remember the number?", "Do you know my number?", "Do you know my lucky number?",
    )),
    ("pet", lambda rng, split: made_up_name(rng, split, "en"), "your pet is called {}", (
        "My pet is called {}.", "My pet is named {}.", "I have a pet called {}.", "I have a pet named {}.",
        "The name of my pet is {}.", "My pet's name is {}.", "I call my pet {}.", "We have a pet called {}.",
        "We have a pet named {}.", "We call my pet {}.",
    ), (
        "What is my pet called?", "What is the name of my pet?", "What is my pet's name?",
        "What's my pet's name?", "What's my pet called?", "What's the name of my pet?",
        "Do you remember my pet's name?", "Do you know my pet's name?",
        "Do you remember the name of my pet?", "Do you know what my pet is called?",
    )),
    ("age", _from(_AGES), "you are {} years old", (
        "I am {} years old.", "I'm {} years old.", "My age is {}.", "I am {}.", "I'm {} now.",
        "I am {} years old now.", "I'm {} years old now.", "My age is now {}.", "I am now {} years old.",
        "I turned {} this year.", "This year I turned {}.", "This year I am {} years old.",
    ), (
        "How old am I?", "What is my age?", "What's my age?", "How old am I now?", "Do you remember my age?",
        "Do you know my age?", "Do you remember how old I am?", "Do you know how old I am?",
        "Tell me my age.", "Tell me how old I am.",
    )),
    ("birthday", _from(DATES_EN), "your birthday is {}", (
        "My birthday is {}.", "My birthday is on {}.", "I was born on {}.", "My birthday comes on {}.",
        "Please remember that my birthday is {}.", "Please remember my birthday: {}.",
        "Remember that my birthday is on {}.", "Remember my birthday: {}.",
        "Remember that I was born on {}.", "Please remember that I was born on {}.",
    ), (
        "When is my birthday?", "What day is my birthday?", "When was I born?", "On what day was I born?",
        "On what day is my birthday?", "Do you remember my birthday?", "Do you know my birthday?",
        "Do you know when my birthday is?", "Do you remember when my birthday is?",
        "Do you know when I was born?",
    )),
    ("purchase", _thing_en, "you bought {}", (
        "I bought {}.", "I bought {} today.", "Today I bought {}.", "Yesterday I bought {}.",
        "I bought {} yesterday.", "I just bought {}.", "I went out and bought {}.",
        "Today I went out and bought {}.", "I have just bought {}.", "I have bought {}.",
    ), (
        "What did I buy?", "What did I buy today?", "What have I bought?", "Do you remember what I bought?",
        "Do you know what I bought?", "Tell me what I bought.", "Can you tell me what I bought?",
        "Do you know what I have bought?", "Which thing did I buy?", "Which thing have I bought?",
        "Can you tell me what I have bought?",
    )),
)  # fmt: skip


def _slots(language: Language, entries: tuple[_Entry, ...]) -> tuple[Slot, ...]:
    return tuple(
        Slot(
            kind=kind,
            language=language,
            make=make,
            fact=fact,
            tells=split_covered(tells),
            asks=split_covered(asks),
        )
        for kind, make, fact, tells, asks in entries
    )


SLOTS: dict[Language, tuple[Slot, ...]] = {"zh": _slots("zh", _ZH), "en": _slots("en", _EN)}

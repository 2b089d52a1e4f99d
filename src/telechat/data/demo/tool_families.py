"""The tools that the demo model is trained to call: definitions, questions, results and closing answers.

Names and parameter keys have several spellings, so that the model has to read the definition it is given.
Knows nothing of rows or splits beyond filling slots from pools.
"""

# ruff: noqa: E501 - sentences and lists of words read best unbroken

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from telechat.data.demo import values
from telechat.data.demo.task import Split
from telechat.data.demo.tool_wordings import MORE_WORDINGS, WORDINGS
from telechat.data.demo.wording import Language

Slots = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """One argument of a tool: the slot it takes its value from, the spellings of its key, its JSON type."""

    slot: str
    keys: tuple[str, ...]
    json_type: str = "string"
    required: bool = True


@dataclass(frozen=True)
class ToolFamily:
    """One kind of tool.

    `fill(rng, split, language)` gives slot values; `result(rng, slots, language)` what the tool returns;
    `answers` has the closing sentence with slots of both.
    """

    kind: str
    names: tuple[str, ...]
    descriptions: dict[Language, tuple[str, ...]]
    parameters: tuple[Parameter, ...]
    answers: dict[Language, str]
    fill: Callable[[random.Random, Split, Language], Slots]
    result: Callable[[random.Random, Slots, Language], Slots]

    def wordings(self, language: Language) -> tuple[str, ...]:
        """The questions that need this tool."""
        return WORDINGS[self.kind][language]

    def more_wordings(self, language: Language) -> tuple[str, ...]:
        """Questions that came later and are split by themselves."""
        return MORE_WORDINGS.get(self.kind, {}).get(language, ())

    def definition(self, rng: random.Random, language: Language) -> tuple[dict[str, Any], dict[str, str]]:
        """An OpenAI tool definition in one of its spellings, and the key that stands for each slot."""
        keys = {parameter.slot: rng.choice(parameter.keys) for parameter in self.parameters}
        function = {
            "name": rng.choice(self.names),
            "description": rng.choice(self.descriptions[language]),
            "parameters": {
                "type": "object",
                "properties": {
                    keys[parameter.slot]: {"type": parameter.json_type} for parameter in self.parameters
                },
                "required": [keys[parameter.slot] for parameter in self.parameters if parameter.required],
            },
        }
        return {"type": "function", "function": function}, keys


def _city(rng: random.Random, split: Split, language: Language) -> str:
    return values.pick(rng, values.CITIES_ZH if language == "zh" else values.CITIES_EN, split)


_DAYS: dict[Language, tuple[str, ...]] = {"zh": ("今天", "明天", "后天"), "en": ("today", "tomorrow")}
_WEATHER: dict[Language, tuple[str, ...]] = {
    "zh": ("晴", "多云", "阴", "小雨", "大雨", "小雪"),
    "en": ("sunny", "cloudy", "rainy", "snowy", "windy"),
}


def _fill_weather(rng: random.Random, split: Split, language: Language) -> Slots:
    return {"city": _city(rng, split, language), "date": rng.choice(_DAYS[language])}


def _weather(rng: random.Random, slots: Slots, language: Language) -> Slots:
    return {"weather": rng.choice(_WEATHER[language]), "temperature": rng.randint(1, 39)}


_TICKERS = (
    "AAPL",
    "MSFT",
    "GOOG",
    "AMZN",
    "TSLA",
    "NVDA",
    "META",
    "IBM",
    "ORCL",
    "BABA",
    "JD",
    "NIO",
    "UBER",
)


def _fill_stock(rng: random.Random, split: Split, language: Language) -> Slots:
    if split == "train" and rng.random() < 0.2:
        return {"symbol": rng.choice(_TICKERS)}
    while True:
        symbol = f"{rng.choice(('60', '00', '30'))}{rng.randint(0, 9999):04d}"
        if values.held_out(symbol) == (split == "test"):
            return {"symbol": symbol}


def _stock(rng: random.Random, slots: Slots, language: Language) -> Slots:
    return {"price": rng.randint(200, 99999) / 100}


def _fill_flights(rng: random.Random, split: Split, language: Language) -> Slots:
    cities = values.CITIES_ZH if language == "zh" else values.CITIES_EN
    origin, destination = values.pick_several(rng, cities, split, 2)
    return {"origin": origin, "destination": destination}


def _flights(rng: random.Random, slots: Slots, language: Language) -> Slots:
    return {
        "flight": f"{rng.choice(('CA', 'MU', 'CZ', 'HU'))}{rng.randint(100, 9999)}",
        "departure": f"{rng.randint(0, 23):02d}:{rng.randrange(0, 60, 5):02d}",
        "price": rng.randint(200, 3000),
    }


def _fill_calculate(rng: random.Random, split: Split, language: Language) -> Slots:
    """An expression whose first number is above 120: smaller pairs belong to the arithmetic tasks."""
    while True:
        sign = rng.choice("**+-/")
        first, second = rng.randint(130, 999), rng.randint(2, 999)
        if sign == "/":
            second = rng.randint(2, 9)
            first -= first % second
        expression = f"{first}{sign}{second}"
        if first > 120 and values.held_out(expression) == (split == "test"):
            return {"expression": expression}


def _calculate(rng: random.Random, slots: Slots, language: Language) -> Slots:
    expression = slots["expression"]
    for sign, operation in (
        ("+", int.__add__),
        ("-", int.__sub__),
        ("*", int.__mul__),
        ("/", int.__floordiv__),
    ):
        if sign in expression:
            first, second = expression.split(sign)
            return {"result": operation(int(first), int(second))}
    raise ValueError(f"no operation in {expression!r}")


_COLOURS = {
    "红色": "red", "绿色": "green", "蓝色": "blue", "白色": "white", "黑色": "black", "黄色": "yellow", "粉色": "pink",
    "灰色": "gray", "紫色": "purple", "旧": "old", "新": "new", "大": "big", "小": "small", "漂亮": "beautiful",
}  # fmt: skip
_THINGS = {
    "苹果": "apple", "椅子": "chair", "桌子": "table", "台灯": "lamp", "帽子": "hat", "盒子": "box", "杯子": "cup",
    "盘子": "plate", "衬衫": "shirt", "书": "book", "钢笔": "pen", "自行车": "bike", "手机": "phone", "相机": "camera",
    "房子": "house", "汽车": "car", "雨伞": "umbrella", "花": "flower", "鸟": "bird", "马": "horse",
}  # fmt: skip
_PHRASES = {
    f"{colour}的{thing}": f"{colour_en} {thing_en}"
    for colour, colour_en in _COLOURS.items()
    for thing, thing_en in _THINGS.items()
}
_PHRASES_EN = {english: chinese for chinese, english in _PHRASES.items()}
_PHRASE_POOLS: dict[Language, values.Pool] = {
    "zh": values.split_values(_PHRASES),
    "en": values.split_values(_PHRASES_EN),
}


def _fill_translate(rng: random.Random, split: Split, language: Language) -> Slots:
    text = values.pick(rng, _PHRASE_POOLS[language], split)
    return {"text": text, "target": "英语" if language == "zh" else "Chinese"}


def _translate(rng: random.Random, slots: Slots, language: Language) -> Slots:
    phrases = _PHRASES if language == "zh" else _PHRASES_EN
    return {"translation": phrases[slots["text"]]}


def _fill_alarm(rng: random.Random, split: Split, language: Language) -> Slots:
    return {"time": values.pick(rng, values.TIMES, split)}


def _confirmed(rng: random.Random, slots: Slots, language: Language) -> Slots:
    return {"status": "ok"}


_NOTES: dict[Language, values.Pool] = {
    "zh": values.split_values(
        day + action
        for day in ["今天", "明天", "后天", "周一", "周五", "周末", "晚上", "下午", "上午", "中午"]
        for action in [
            "一起吃饭",
            "开会",
            "去爬山",
            "交报告",
            "打球",
            "看电影",
            "喝茶",
            "去图书馆",
            "上课",
            "去医院",
            "买菜",
            "去车站",
        ]
    ),
    "en": values.split_values(
        f"{action} {day}"
        for day in ["today", "tomorrow", "on Monday", "on Friday", "this weekend", "tonight", "at noon"]
        for action in [
            "let us eat",
            "meeting",
            "we go hiking",
            "send the report",
            "play ball",
            "see a film",
            "come to class",
        ]
    ),
}


def _fill_message(rng: random.Random, split: Split, language: Language) -> Slots:
    people = values.PEOPLE_ZH if language == "zh" else values.PEOPLE_EN
    return {"person": values.pick(rng, people, split), "note": values.pick(rng, _NOTES[language], split)}


_HOTELS: dict[Language, tuple[str, ...]] = {
    "zh": ("海景酒店", "花园酒店", "国际酒店", "星光酒店", "和平饭店", "长城饭店"),
    "en": ("Garden Hotel", "Star Hotel", "Grand Hotel", "River Inn", "Lake Inn", "Palace Hotel"),
}


def _fill_hotels(rng: random.Random, split: Split, language: Language) -> Slots:
    return {"city": _city(rng, split, language), "nights": rng.randint(2, 9)}


def _hotels(rng: random.Random, slots: Slots, language: Language) -> Slots:
    return {"hotel": rng.choice(_HOTELS[language]), "price": rng.randint(100, 999)}


def _fill_time(rng: random.Random, split: Split, language: Language) -> Slots:
    return {"city": _city(rng, split, language)}


def _time(rng: random.Random, slots: Slots, language: Language) -> Slots:
    return {"time": f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"}


FAMILIES = (
    ToolFamily(
        "weather",
        ("get_weather", "query_weather", "get_current_weather"),
        {"zh": ("查询天气", "查询城市的天气"), "en": ("Get the weather", "Get the weather of a city")},
        (Parameter("city", ("city", "location")), Parameter("date", ("date", "day"), required=False)),
        {
            "zh": "{city}{date}天气{weather}，气温{temperature}度。",
            "en": "The weather in {city} {date} is {weather}, {temperature} degrees.",
        },
        _fill_weather,
        _weather,
    ),
    ToolFamily(
        "stock",
        ("get_stock_price", "query_stock"),
        {"zh": ("查询股价", "查询股票价格"), "en": ("Get a stock price", "Look up a stock price")},
        (Parameter("symbol", ("symbol", "code")),),
        {"zh": "{symbol}的股价是{price}元。", "en": "The price of {symbol} is {price}."},
        _fill_stock,
        _stock,
    ),
    ToolFamily(
        "flights",
        ("search_flights", "find_flight"),
        {"zh": ("查询航班", "搜索两地的航班"), "en": ("Search flights", "Find flights between two cities")},
        (Parameter("origin", ("origin", "from_city")), Parameter("destination", ("destination", "to_city"))),
        {
            "zh": "从{origin}到{destination}有{flight}航班，{departure}出发，票价{price}元。",
            "en": "Flight {flight} from {origin} to {destination} leaves at {departure} and costs {price}.",
        },
        _fill_flights,
        _flights,
    ),
    ToolFamily(
        "calculate",
        ("calculate", "calculator"),
        {"zh": ("计算算式", "计算器"), "en": ("Evaluate an expression", "A calculator")},
        (Parameter("expression", ("expression", "formula")),),
        {"zh": "{expression}的结果是{result}。", "en": "The result of {expression} is {result}."},
        _fill_calculate,
        _calculate,
    ),
    ToolFamily(
        "translate",
        ("translate", "translate_text"),
        {
            "zh": ("翻译文本", "把文本翻译成目标语言"),
            "en": ("Translate a text", "Translate a text into a language"),
        },
        (Parameter("text", ("text", "content")), Parameter("target", ("target", "language"))),
        {"zh": "“{text}”的{target}是“{translation}”。", "en": '"{text}" in {target} is "{translation}".'},
        _fill_translate,
        _translate,
    ),
    ToolFamily(
        "alarm",
        ("set_alarm", "create_alarm"),
        {"zh": ("设置闹钟", "新建一个闹钟"), "en": ("Set an alarm", "Create an alarm")},
        (Parameter("time", ("time", "alarm_time")),),
        {"zh": "好的，{time}的闹钟已经设好了。", "en": "Done, the alarm is set for {time}."},
        _fill_alarm,
        _confirmed,
    ),
    ToolFamily(
        "message",
        ("send_message", "send_sms"),
        {"zh": ("发送消息", "给联系人发消息"), "en": ("Send a message", "Send a message to a person")},
        (Parameter("person", ("to", "receiver")), Parameter("note", ("text", "content"))),
        {
            "zh": "好的，已经给{person}发送消息：“{note}”。",
            "en": 'Done, I sent {person} the message "{note}".',
        },
        _fill_message,
        _confirmed,
    ),
    ToolFamily(
        "hotels",
        ("search_hotels", "book_hotel"),
        {"zh": ("查询酒店", "搜索城市的酒店"), "en": ("Search hotels", "Find a hotel in a city")},
        (Parameter("city", ("city", "location")), Parameter("nights", ("nights", "days"), "integer")),
        {
            "zh": "{city}的{hotel}有空房，住{nights}晚，每晚{price}元。",
            "en": "{hotel} in {city} has a room for {nights} nights at {price} a night.",
        },
        _fill_hotels,
        _hotels,
    ),
    ToolFamily(
        "time",
        ("get_time", "get_local_time"),
        {"zh": ("查询时间", "查询城市的当前时间"), "en": ("Get the time", "Get the local time of a city")},
        (Parameter("city", ("city", "location")),),
        {"zh": "{city}现在是{time}。", "en": "It is {time} in {city} now."},
        _fill_time,
        _time,
    ),
)

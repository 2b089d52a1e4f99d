"""Frames of the rewriting tasks: a source text with slots and the answer that keeps the slots. Data only."""

# ruff: noqa: E501 - sentences and lists of words read best unbroken

from __future__ import annotations

from dataclasses import dataclass

from telechat.data.demo.wording import Language


@dataclass(frozen=True)
class Frame:
    """A source text and its answer; both have slots in braces, the answer's among the source's."""

    source: str
    target: str


SUMMARY_FRAMES: dict[Language, tuple[Frame, ...]] = {
    "zh": (
        Frame(
            "{date}，{org}举办了{event}。活动吸引了{number}人参加，现场气氛十分热烈。负责人{person}表示，今后还会举办更多这样的活动。",
            "{org}于{date}举办{event}，{number}人参加。",
        ),
        Frame(
            "{person}是一位来自{city}的年轻人。{date}，经过长时间的准备，他终于在{event}上获得了第一名，家人和朋友都为他感到高兴。",
            "{city}的{person}于{date}在{event}上获得第一名。",
        ),
        Frame(
            "由于连日下雨，原定于{date}在{city}举行的{event}被迫推迟。主办方表示，新的时间确定后会及时通知大家，请大家耐心等待。",
            "因为下雨，{city}的{event}推迟举行。",
        ),
        Frame(
            "近日，{org}宣布将在{city}建设一座新的研究中心。该中心计划投资{number}万元，建成后将为当地带来许多就业机会。",
            "{org}将投资{number}万元，在{city}建设研究中心。",
        ),
        Frame(
            "昨天下午，{city}的一家商店开始打折出售{goods}。消息传开以后，很多人赶来购买，不到两个小时就卖出了{number}件。",
            "{city}一家商店打折出售{goods}，两小时卖出{number}件。",
        ),
        Frame(
            "{person}从小就喜欢帮助别人。{date}，他向{org}捐出了{number}本书，希望更多的孩子能有书读，大家都称赞他的做法。",
            "{person}于{date}向{org}捐书{number}本。",
        ),
        Frame(
            "从{city}开来的火车在{date}首次通车，车上共有{number}名乘客。车站工作人员说，这条线路让人们的出行更加方便。",
            "{city}的火车于{date}首次通车，有{number}名乘客。",
        ),
        Frame(
            "在{event}上，来自{org}的{person}作了报告。他讲得生动有趣，台下的{number}名听众多次鼓掌，会后还有不少人向他提问。",
            "{org}的{person}在{event}上作报告，听众{number}名。",
        ),
    ),
    "en": (
        Frame(
            "On {date}, {org} held a {event}. It was a lively day, and {number} people took part. "
            "{person}, who led the event, said that there would be more of them.",
            "{org} held a {event} on {date} with {number} people.",
        ),
        Frame(
            "{person} is a young student from {city}. After many months of hard work, the student won first prize "
            "at the {event} on {date}, and the whole family was proud.",
            "{person} from {city} won first prize at the {event} on {date}.",
        ),
        Frame(
            "Because of heavy rain, the {event} planned for {date} in {city} has been put off. "
            "A new day will be announced soon, and visitors are asked to wait.",
            "The {event} in {city} was put off because of rain.",
        ),
        Frame(
            "Last week {org} said that it will build a new research center in {city}. "
            "The center will cost {number} million and bring many new jobs to the area.",
            "{org} will build a research center in {city} for {number} million.",
        ),
        Frame(
            "{person} has always liked to help others. On {date}, {number} books were given by {person} to {org}, "
            "so that more children can read, and everyone was thankful.",
            "{person} gave {number} books to {org} on {date}.",
        ),
        Frame(
            "Yesterday a store in {city} began to sell every {goods} at half price. Many people came at once, "
            "and {number} were sold in less than two hours.",
            "A store in {city} sold {number} pieces of {goods} at half price.",
        ),
    ),
}

REPHRASE_FRAMES: dict[Language, tuple[Frame, ...]] = {
    "zh": (
        Frame("{person}把{goods}送给了{other}。", "{goods}被{person}送给了{other}。"),
        Frame("因为下雨，{person}没有去{city}。", "{person}没有去{city}，原因是下雨。"),
        Frame("{person}觉得{topic}很有意思。", "在{person}看来，{topic}非常有趣。"),
        Frame("{org}将在{date}举办{event}。", "{date}，{event}将由{org}举办。"),
        Frame("{person}不但喜欢{goods}，而且会{topic}。", "{person}既喜欢{goods}，又会{topic}。"),
        Frame("如果有时间，{person}就会去{city}看{other}。", "只要有空，{person}就到{city}看望{other}。"),
        Frame("{city}的{goods}非常有名。", "{city}以{goods}闻名。"),
        Frame("{person}每天都花很多时间{topic}。", "{topic}每天都要占用{person}大量时间。"),
        Frame("虽然{topic}很难，但是{person}没有放弃。", "尽管{topic}不容易，{person}仍然坚持了下来。"),
        Frame("{person}在{date}去了{city}。", "{date}那天，{person}前往{city}。"),
        Frame("{person}告诉{other}，{event}很精彩。", "{other}从{person}那里得知，{event}十分精彩。"),
        Frame("{person}比{other}更喜欢{topic}。", "{other}没有{person}那么喜欢{topic}。"),
    ),
    "en": (
        Frame("{person} bought the {goods} in {city}.", "The {goods} was bought by {person} in {city}."),
        Frame("{person} gave {other} a {goods}.", "{other} was given a {goods} by {person}."),
        Frame(
            "Because it rained, {person} did not go to {city}.",
            "{person} did not go to {city} due to the rain.",
        ),
        Frame("{org} will hold a {event} on {date}.", "A {event} will be held by {org} on {date}."),
        Frame(
            "{person} thinks that the {event} is interesting.",
            "In the eyes of {person}, the {event} is interesting.",
        ),
        Frame("{person} is taller than {other}.", "{other} is shorter than {person}."),
        Frame("{city} is famous for its {event}.", "The {event} of {city} is well known."),
        Frame(
            "If {person} has time, {person} will visit {city}.",
            "{person} will visit {city} when time allows.",
        ),
        Frame("{person} went to {city} on {date}.", "On {date}, {person} traveled to {city}."),
        Frame(
            "Although it was late, {person} waited for {other}.",
            "{person} waited for {other} even though it was late.",
        ),
    ),
}

QUESTION_FRAMES: dict[Language, tuple[Frame, ...]] = {
    "zh": (
        Frame(
            "怎样{topic}？",
            "{topic}有什么好方法？\n{topic}要从哪里开始？\n{topic}时要注意什么？",
        ),
        Frame(
            "{topic}难吗？",
            "{topic}容易吗？\n{topic}需要多长时间？\n新手怎么{topic}？",
        ),
        Frame(
            "为什么要{topic}？",
            "{topic}有什么好处？\n{topic}有什么用？\n什么人适合{topic}？",
        ),
        Frame(
            "{topic}需要准备什么？",
            "{topic}要花多少钱？\n{topic}要用哪些东西？\n{topic}之前要做什么？",
        ),
        Frame(
            "去{city}旅游要玩几天？",
            "{city}有哪些好玩的地方？\n什么时候去{city}最好？\n{city}有什么好吃的？",
        ),
        Frame(
            "{goods}多少钱？",
            "{goods}在哪里能买到？\n{goods}哪一种最好？\n怎么挑选{goods}？",
        ),
        Frame(
            "{event}什么时候举行？",
            "{event}在哪里举行？\n怎么参加{event}？\n{event}有哪些内容？",
        ),
        Frame(
            "{city}的天气怎么样？",
            "{city}今天会下雨吗？\n{city}现在冷不冷？\n去{city}要带什么衣服？",
        ),
    ),
    "en": (
        Frame(
            "How do I {topic}?",
            "What is the best way to {topic}?\nWhere should I start to {topic}?\nWhat do I need to {topic}?",
        ),
        Frame(
            "Is it hard to {topic}?",
            "Is it easy to {topic}?\nHow long does it take to {topic}?\nCan anyone {topic}?",
        ),
        Frame(
            "Why should I {topic}?",
            "Is it useful to {topic}?\nWho should {topic}?\nWhen is it good to {topic}?",
        ),
        Frame(
            "What can I see in {city}?",
            "When is the best time to visit {city}?\nHow do I get to {city}?\nWhat can I eat in {city}?",
        ),
        Frame(
            "When is the {event}?",
            "Where is the {event}?\nHow do I join the {event}?\nHow much does the {event} cost?",
        ),
        Frame(
            "How much is a {goods}?",
            "Where can I buy a {goods}?\nHow do I choose a {goods}?\nWhich {goods} is the best?",
        ),
    ),
}

"""Values that fill the slots of wordings: names, cities, goods, dates; which are trained, which held out.

Most pools are composed (surname and given name, stem and ending), so that they are wide enough for copying to
be cheaper than remembering, and so that every Han character of a held-out value occurs in some trained value.
Knows no task and no wording.
"""

# ruff: noqa: E501 - lists of words read best unbroken
# The English lists are short on purpose: a word at the start of a text or a JSON string has other tokens than after
# a space, and both forms of every word have to be seen often.

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterable

from telechat.data.demo.task import Split
from telechat.data.demo.wording import has_han

Pool = dict[Split, list[str]]

TEST_SHARE = 0.2


def held_out(text: str, *, share: float = TEST_SHARE) -> bool:
    """Whether a value belongs to the test split: fixed by its text alone, the same on every machine."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def split_values(values: Iterable[str]) -> Pool:
    """Split values by hash; a value with a Han character that no other value has stays trained."""
    unique = list(dict.fromkeys(values))
    counts = Counter(character for value in unique for character in set(value) if has_han(character))
    pool: Pool = {"train": [], "test": []}
    for value in unique:
        own = {character for character in set(value) if has_han(character)}
        if held_out(value) and all(counts[character] > 1 for character in own):
            counts.subtract(own)
            pool["test"].append(value)
        else:
            pool["train"].append(value)
    return pool


def pick(rng: random.Random, pool: Pool, split: Split) -> str:
    """One value of a pool that belongs to the split."""
    return rng.choice(pool[split])


def pick_several(rng: random.Random, pool: Pool, split: Split, count: int) -> list[str]:
    """`count` different values of a pool that belong to the split."""
    return rng.sample(pool[split], count)


def _words(text: str, separator: str | None = None) -> list[str]:
    """The words of a list that is written as one text."""
    return text.split(separator)


def _compose(*parts: Iterable[str]) -> list[str]:
    return ["".join(combination) for combination in itertools.product(*parts)]


_SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯董程曹"
_GIVEN_ONE = "伟芳娜敏静丽强磊军洋勇艳杰涛明超兰霞平刚红玲飞鑫波宁琳晨雪佳"
_GIVEN_TWO = _words(
    "子轩 雨桐 浩然 思远 一诺 晓明 文静 建国 小红 志强 海燕 梓涵 欣怡 嘉豪 雅婷 宇航 诗涵 俊杰 天佑 美玲 "
    "春生 秀英 国强 玉兰 若曦 明哲 书瑶 立新 佳宁 安然"
)
PEOPLE_ZH = split_values(_compose(_SURNAMES, [*_GIVEN_ONE, *_GIVEN_TWO]))

_FIRST_NAMES = _words(
    "Anna Ben Carol David Emma Frank Grace Henry Jack Kate Leo Maria Noah Paul Rosa Sam Tina Alice Bob Daniel James Lily Mary Peter Tom Will"
)
_LAST_NAMES = _words(
    "Adams Baker Carter Davis Evans Foster Green Hill Jones King Lewis Miller Parker Reed Smith Turner Walker Young Wood Stone"
)
PEOPLE_EN = split_values(f"{first} {last}" for first in _FIRST_NAMES for last in _LAST_NAMES)

_REAL_CITIES_ZH = _words(
    "北京 上海 广州 深圳 天津 重庆 成都 武汉 杭州 南京 苏州 西安 长沙 沈阳 青岛 郑州 大连 宁波 厦门 福州 "
    "济南 合肥 昆明 南宁 贵阳 兰州 海口 拉萨 银川 西宁 太原 南昌 哈尔滨 长春 石家庄 无锡 常州 温州 桂林 三亚 "
    "洛阳 开封 扬州 珠海 东莞 佛山 中山 惠州 烟台 威海 徐州 南通 绍兴 嘉兴 金华 泉州 大同 包头 唐山 保定 "
    "巴黎 伦敦 东京 纽约 柏林 罗马 首尔 曼谷 悉尼 莫斯科"
)
_CITY_STEMS_ZH = (
    "南北东西安长宁平永新临清江海青云金龙华泰吉宜广天常福春开明德信庆阳兴建桂武常洛柳银石汉秦秀景"
)
_CITY_ENDINGS_ZH = "州阳山江海城安宁平川昌水林口南溪岭原"
CITIES_ZH = split_values(
    [
        *_REAL_CITIES_ZH,
        *(stem + ending for stem in _CITY_STEMS_ZH for ending in _CITY_ENDINGS_ZH if stem != ending),
    ]
)

_REAL_CITIES_EN = _words("Paris London Tokyo Berlin Rome Boston Chicago Beijing Shanghai Sydney Moscow Seoul")
_CITY_STEMS_EN = _words(
    "Brook Spring River Stone Green Clear Hill Lake North South East West Oak Silver Gold Black White Red High King Mill Sand Snow Rock"
)
_CITY_ENDINGS_EN = _words("ton field port ville dale haven ford view burg land")
_COMPOSED_CITIES_EN = [
    stem + ending for stem in _CITY_STEMS_EN for ending in _CITY_ENDINGS_EN if stem.lower() != ending
]
CITIES_EN: Pool = split_values(_COMPOSED_CITIES_EN)
CITIES_EN["train"].extend(_REAL_CITIES_EN)

_FRUIT_ZH = _words(
    "苹果 香蕉 橙子 葡萄 西瓜 草莓 桃子 梨子 樱桃 芒果 菠萝 柠檬 土豆 番茄 黄瓜 茄子 白菜 萝卜 南瓜 玉米 "
    "牛奶 面包 鸡蛋 大米 面粉 茶叶 咖啡 蜂蜜 豆腐 酱油"
)
_MATERIALS_ZH = _words("竹 木 铁 铜 棉 布 纸 皮 石 银")
_OBJECTS_ZH = _words("椅 桌 盒 杯 碗 盘 箱 架 灯 包 帽 鞋 床 柜 门 窗 勺 篮 凳 扇")
_SIZES_ZH = _words("大 小 红 白 黑 蓝 新 旧")
GOODS_ZH = split_values([*_FRUIT_ZH, *_compose(_MATERIALS_ZH, _OBJECTS_ZH), *_compose(_SIZES_ZH, _FRUIT_ZH)])

_COLOURS_EN = _words("red green blue white black yellow brown pink gray purple small large old new")
_THINGS_EN = _words(
    "apple pear chair table lamp bag hat box cup plate shirt coat desk sofa clock mirror bottle basket book pen "
    "bike phone camera radio kite"
)
GOODS_EN = split_values(f"{colour} {thing}" for colour in _COLOURS_EN for thing in _THINGS_EN)

_TOPIC_GROUPS_ZH = {
    "学 学习 练习 自学": "书法 游泳 钢琴 英语 围棋 摄影 编程 跑步 画画 唱歌 跳舞 法语 数学 写作 吉他 象棋 剪纸 瑜伽 滑雪 魔术",
    "做 学做": "面条 蛋糕 饺子 汤圆 面包 豆腐 红烧肉 鱼汤 米饭 月饼 果酱 酸奶",
    "养 照顾": "小猫 小狗 金鱼 兔子 乌龟 鹦鹉 蚕宝宝",
    "种 养护 栽培": "兰花 月季 番茄 辣椒 黄瓜 草莓 薄荷 茶树 多肉 玫瑰",
    "清洗 整理 收纳": "衣服 窗帘 地毯 书柜 厨房 衣柜 鞋子 玩具 冰箱 书包",
    "写 修改": "日记 短文 诗歌 作文 简历 总结 书信 演讲稿 读书笔记",
    "修理 挑选 保养 选购": "自行车 手机 电脑 相机 手表 台灯 空调 洗衣机 雨伞 耳机",
    "拍摄 画": "风景 人物 山水 花鸟 星空 夜景 日出",
}
_TOPIC_GROUPS_EN = {
    "learn study practice teach": "chess piano English French drawing singing dancing guitar photography yoga cooking swimming",
    "make cook prepare": "cakes soup bread dumplings noodles cookies pizza salad jam pancakes",
    "raise care_for": "cats dogs goldfish rabbits turtles parrots",
    "grow plant": "roses tomatoes peppers strawberries mint tea_plants orchids tulips",
    "clean store organize": "shoes books clothes toys carpets bags kitchens photos",
    "write edit": "poems letters stories speeches diaries essays reports",
    "repair choose buy sell": "bikes phones computers cameras watches lamps kites clocks chairs boats",
}


def _grouped(groups: dict[str, str], joint: str) -> Pool:
    """Topics made of each verb and each thing of a group; an underscore stands for a space inside a part."""
    return split_values(
        f"{verb}{joint}{thing}".replace("_", " ")
        for verbs, things in groups.items()
        for verb in verbs.split()
        for thing in things.split()
    )


TOPICS_ZH = _grouped(_TOPIC_GROUPS_ZH, "")
TOPICS_EN = _grouped(_TOPIC_GROUPS_EN, " ")

_ORG_ENDINGS_ZH = _words("大学 图书馆 博物馆 科技公司 中学 医院 体育馆 出版社 电视台 文化馆")
ORGS_ZH = split_values(city + ending for city in _REAL_CITIES_ZH for ending in _ORG_ENDINGS_ZH)
_ORG_ENDINGS_EN = _words("University|Library|Museum|High School|Hospital|Art Club|Press|Science Center", "|")
ORGS_EN = split_values(
    f"{city} {ending}" for city in [*_REAL_CITIES_EN, *_CITY_STEMS_EN] for ending in _ORG_ENDINGS_EN
)

_EVENT_THEMES_ZH = _words(
    "读书 摄影 书法 音乐 科普 环保 美食 茶文化 机器人 人工智能 围棋 电影 绘画 诗歌 健康 历史"
)
_EVENT_KINDS_ZH = _words("节 展览 讲座 比赛 论坛 交流会 大会 开放日 晚会 培训班")
EVENTS_ZH = split_values(_compose(_EVENT_THEMES_ZH, _EVENT_KINDS_ZH))
_EVENT_THEMES_EN = _words(
    "book photo music science art film chess robot food garden history poetry health tea"
)
_EVENT_KINDS_EN = _words("fair festival show contest forum workshop exhibition lecture")
EVENTS_EN = split_values(_compose(_EVENT_THEMES_EN, [f" {kind}" for kind in _EVENT_KINDS_EN]))

_MONTHS_EN = _words("January February March April May June July August September October November December")
DATES_ZH = split_values(f"{month}月{day}日" for month in range(1, 13) for day in range(1, 29))
DATES_EN = split_values(f"{month} {day}" for month in _MONTHS_EN for day in range(1, 29))
TIMES = split_values(f"{hour:02d}:{minute:02d}" for hour in range(24) for minute in range(0, 60, 5))

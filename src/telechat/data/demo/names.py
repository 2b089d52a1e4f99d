"""Made-up names, so many that a model must copy the one it was given instead of remembering it.

Whether a name is trained or held out is fixed by its text. Knows no task.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from telechat.data.demo.task import Split
from telechat.data.demo.values import held_out
from telechat.data.demo.wording import Language

_HAN = (
    "一乐云仁今付代伊优伦伯佑佳依俊保信倩健元光兰其凌凡凤刚初利力勇北千华卓南博原友双可叶向君吉听启周品哲"
    "唐嘉园国图圆坤城堂墨士声夏多天太奇妙妮姗娅娜婉婷嫣子存宁宇安宏宗宜宝客宣家容富寒察寻导小少尔尚尧山岚"
    "岩岳峰川州左巧帆希常平年广庆康建弘强彤彦影心志念思怡恒恩悦惠意慧成手扬承拓振捷敏文斌新方旋日旭早旺昆"
    "昌明易星春昭晓晨景晴智暖曦月有朋望木未本机杉杏杜杨松林果枫柏柔柳桂桃桐梁梅梓梦棋森楚楠樱欢欣歌正武毅"
    "民水永江池汤沐沙河沁泉泊波泽洁洋洛津洪流海涛润涵淑清渊温源溪滨漫潇澄澜火灵炎烁烨然煜照燕爱牧特玉王玛"
    "玥玲珂珍珠琪琳琴瑜瑞瑶璐甜生田画界留白百盈真知石码砚磊祥禾福秀秋科程穆空立竹笑笛筠米粒素紫红纯纳纷线"
    "细终维绿罗美羽翔翠翰老考耀聪胜能臣良艺艾芊芙芝花芳芸苏苗若英茂范茉茗茜茶草荣荷莉莎莓莫莲菁菊菲萌萍萱"
    "落葵蒙蓝蔚蕊薇虎虹蜜行衡西见观言讯诗诚语诺谦谷豆贝贤赛超越跃路轩辉辰达远连迪适逸道那郎郑里金鑫钟铃铭"
    "锋锦长闻阳阿陆陈陶雁雅雨雪雯雷露青静韵音顺颖飒飞饶香马骏高魏鱼鸣鸿鹏鹤鹿麦黎黛齐龙"
)
_SYLLABLE_TEXT = (
    "ba be bi bo da de di do du fa fe fi ga go ha he hu ja jo ka ke ki ko la le li lo lu ma me mi mo mu na "
    "ne ni no nu pa pe pi po ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo wa we ya yo za ze zi zo"
)
_SYLLABLES = _SYLLABLE_TEXT.split()
_ENDINGS = ("n", "r", "s", "l", "m", "x", "k", "d", "t", "", "", "", "", "")


def han_name(rng: random.Random) -> str:
    """Two or three Han characters, no two alike."""
    return "".join(rng.sample(_HAN, rng.choice((2, 2, 3))))


def latin_name(rng: random.Random) -> str:
    """Two or three syllables with a capital letter, such as `Tiromel`."""
    syllables = [rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 2, 3)))]
    return "".join(syllables).capitalize() + rng.choice(_ENDINGS)


_MAKERS: dict[Language, Callable[[random.Random], str]] = {"zh": han_name, "en": latin_name}


def made_up_name(rng: random.Random, split: Split, language: Language) -> str:
    """A name in the script of `language` that belongs to `split`; a fifth of all names is held out."""
    while True:
        name = _MAKERS[language](rng)
        if held_out(name) == (split == "test"):
            return name

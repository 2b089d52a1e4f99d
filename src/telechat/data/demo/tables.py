"""Figures of a sentence into a Markdown table: three or four rows, two or three columns.

The header repeats the names that the question gives to the figures; names and figures are copied.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from telechat.data.demo import values
from telechat.data.demo.task import Message, Row, Split, Verdict
from telechat.data.demo.wording import Language, dress, split_covered

_INSTRUCTIONS: dict[Language, tuple[str, ...]] = {
    "zh": (
        "请把下面的数据整理成表格：{data}",
        "把这些数据做成表格：{data}",
        "请用Markdown表格列出：{data}",
        "请将以下内容整理成Markdown表格：{data}",
        "{data}请整理成表格。",
        "{data}请用表格表示。",
        "帮我把下面的内容变成表格：{data}",
        "请根据以下数据生成一个表格：{data}",
        "用表格整理一下：{data}",
        "{data}帮我做成一个表格。",
        "{data}请把这些数据整理成Markdown表格。",
        "请做一个表格，内容如下：{data}",
        "以下数据请用表格列出：{data}",
        "把下面这段话里的数据列成表格：{data}",
        "下面是一些数据，请整理成表格：{data}",
        "{data}请根据这些数据生成表格。",
        "请把以下数据转成Markdown表格：{data}",
        "根据下面的内容做一个表格：{data}",
        "{data}把这段话整理成表格。",
        "将下面的数据转成表格：{data}",
        "请用表格表示下面的数据：{data}",
        "帮我列一个表格：{data}",
        "{data}请列成表格。",
        "麻烦把这些数据列成Markdown表格：{data}",
        "麻烦整理成表格：{data}",
    ),
    "en": (
        "Put these figures into a table: {data}",
        "Please make a table of the following data: {data}",
        "Turn this into a Markdown table: {data}",
        "{data} Please put this into a table.",
        "Please list these figures in a table: {data}",
        "Make a Markdown table: {data}",
        "{data} Make a table of these figures.",
        "Show the following figures as a table: {data}",
        "Please turn the following data into a Markdown table: {data}",
        "{data} Please show this as a table.",
        "Can you put the following data into a table? {data}",
        "Can you make a table of this? {data}",
        "I need a table of these figures: {data}",
        "{data} Turn these figures into a table.",
        "Please show these data in a Markdown table: {data}",
        "Convert this into a table: {data}",
        "Please convert the following figures into a Markdown table: {data}",
        "List the following data in a table: {data}",
        "{data} Can you list this in a table?",
        "I need these data as a Markdown table: {data}",
    ),
}
_SPLIT = {language: split_covered(wordings) for language, wordings in _INSTRUCTIONS.items()}


@dataclass(frozen=True)
class Figure:
    """One column of figures: its name, the unit that follows each number, and the range of the numbers."""

    name: str
    unit: str
    lowest: int
    highest: int


@dataclass(frozen=True)
class Schema:
    """A kind of table: what its rows are called, where their names come from, which figures it may have."""

    head: str
    pool: values.Pool
    figures: tuple[Figure, ...]


_SCHEMAS: dict[Language, tuple[Schema, ...]] = {
    "zh": (
        Schema(
            "商品",
            values.GOODS_ZH,
            (
                Figure("单价", "元", 2, 999),
                Figure("销量", "件", 10, 999),
                Figure("库存", "件", 10, 999),
                Figure("重量", "克", 20, 900),
            ),
        ),
        Schema(
            "城市",
            values.CITIES_ZH,
            (
                Figure("最高气温", "度", 10, 40),
                Figure("最低气温", "度", 1, 25),
                Figure("人口", "万", 20, 990),
                Figure("湿度", "%", 10, 99),
            ),
        ),
        Schema(
            "姓名",
            values.PEOPLE_ZH,
            (
                Figure("语文", "分", 40, 100),
                Figure("数学", "分", 40, 100),
                Figure("英语", "分", 40, 100),
                Figure("年龄", "岁", 10, 80),
                Figure("身高", "厘米", 120, 199),
            ),
        ),
        Schema(
            "公司",
            values.ORGS_ZH,
            (
                Figure("收入", "万元", 20, 990),
                Figure("利润", "万元", 10, 400),
                Figure("员工", "人", 10, 990),
                Figure("第一季度", "万元", 10, 990),
                Figure("第二季度", "万元", 10, 990),
            ),
        ),
    ),
    "en": (
        Schema(
            "Product",
            values.GOODS_EN,
            (
                Figure("price", "", 2, 999),
                Figure("sales", "", 10, 999),
                Figure("stock", "", 10, 999),
                Figure("weight", "", 20, 900),
            ),
        ),
        Schema(
            "City",
            values.CITIES_EN,
            (
                Figure("high", "", 10, 40),
                Figure("low", "", 1, 25),
                Figure("population", "", 20, 990),
                Figure("humidity", "", 10, 99),
            ),
        ),
        Schema(
            "Name",
            values.PEOPLE_EN,
            (
                Figure("math", "", 40, 100),
                Figure("English", "", 40, 100),
                Figure("science", "", 40, 100),
                Figure("age", "", 10, 80),
                Figure("height", "", 120, 199),
            ),
        ),
    ),
}


@dataclass(frozen=True)
class Tables:
    """Small tables copied out of a sentence."""

    name: str = "tables"
    share: float = 2.5

    def wordings(self, split: Split) -> list[str]:
        """Instructions with {data} where the sentence stands."""
        return [wording for by_split in _SPLIT.values() for wording in by_split[split]]

    def draw(self, rng: random.Random, split: Split) -> Row:
        """One table; its names belong to the split."""
        language: Language = rng.choice(("zh", "zh", "en"))
        schema = rng.choice(_SCHEMAS[language])
        figures = rng.sample(schema.figures, rng.choice((1, 2, 2)))
        names = values.pick_several(rng, schema.pool, split, rng.choice((3, 3, 4)))
        cells = [
            [name, *(f"{rng.randint(figure.lowest, figure.highest)}{figure.unit}" for figure in figures)]
            for name in names
        ]
        head = [schema.head, *(figure.name for figure in figures)]
        wording = rng.choice(_SPLIT[language][split])
        template = dress(rng, wording, language, openings=not wording.startswith("{data}"))
        question = template.format(data=_sentence(rng, head, cells, language))
        return Row(
            task=self.name,
            wording=wording,
            messages=[
                {"role": "user", "content": question},
                {"role": "assistant", "content": markdown_table(head, cells)},
            ],
            facts={"head": head, "cells": cells},
        )

    def judge(self, row: Row, answer: Message) -> Verdict:
        """Right when the answer holds one Markdown table with exactly the expected head and cells."""
        table = parse_markdown_table(answer.get("content") or "")
        if table is None:
            return Verdict(False, "no Markdown table in the answer")
        expected = [row.facts["head"], *row.facts["cells"]]
        if len(table) != len(expected):
            return Verdict(False, f"{len(table) - 1} rows; expected {len(expected) - 1}")
        for found_cells, expected_cells in zip(table, expected, strict=True):
            if found_cells != expected_cells:
                return Verdict(False, f"row {found_cells}; expected {expected_cells}")
        return Verdict(True)


def _sentence(rng: random.Random, head: list[str], cells: list[list[str]], language: Language) -> str:
    """The figures as a sentence: every row names its figures."""
    if language == "zh":
        link = rng.choice(("", "", "是", "为"))
        rows = [
            row[0] + "，".join(f"{name}{link}{cell}" for name, cell in zip(head[1:], row[1:], strict=True))
            for row in cells
        ]
        return rng.choice(("；", "；", "。")).join(rows) + "。"
    rows = [
        f"{row[0]}: " + ", ".join(f"{name} {cell}" for name, cell in zip(head[1:], row[1:], strict=True))
        for row in cells
    ]
    return "; ".join(rows) + "."


def markdown_table(head: list[str], cells: list[list[str]]) -> str:
    """A Markdown table with one space around every cell."""
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parse_markdown_table(text: str) -> list[list[str]] | None:
    """Head and rows of the first Markdown table of a text, without its rule; None when there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    if len(lines) < 3:
        return None
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    if any(set(cell) - set("-:") or not cell for cell in table[1]):
        return None
    return [table[0], *table[2:]]


TASKS = (Tables(),)

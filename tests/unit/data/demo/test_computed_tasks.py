"""The tasks whose answers are computed: every step is true, the judges accept right answers and no others."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from telechat.data.demo import TASKS, Message, Row, generate_rows, write_jsonl
from telechat.data.demo.arithmetic import is_reserved, worked_answer
from telechat.data.demo.chicken_rabbit import MAX_HEADS, MIN_HEADS, PROBLEMS, is_held_out, solution
from telechat.data.demo.rows import CONVERSATION, MAX_CONVERSATION_CHARACTERS
from telechat.data.demo.tables import markdown_table, parse_markdown_table
from telechat.data.demo.tool_families import FAMILIES
from telechat.data.demo.wording import Language
from telechat.errors import UsageError

OWN_TASKS = (
    "arithmetic",
    "chicken_rabbit",
    "tables",
    "summary",
    "rephrase",
    "similar_questions",
    "tool_call",
)
LANGUAGES: tuple[Language, ...] = ("zh", "en")
EQUATION = re.compile(r"(\d+)((?:[-+÷/]\d+)+)=(\d+)")


def draw(task: str, count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [TASKS[task].draw(rng, rng.choice(("train", "test"))) for _ in range(count)]


def reply(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def check_equations(text: str) -> int:
    """Assert that every equation of a text is true; return how many there are."""
    equations = EQUATION.findall(text)
    for first, rest, result in equations:
        value = int(first)
        for sign, number in re.findall(r"([-+÷/])(\d+)", rest):
            if sign in "÷/":
                assert value % int(number) == 0
                value //= int(number)
            else:
                value += int(number) if sign == "+" else -int(number)
        assert value == int(result), text
    return len(equations)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_step_of_every_sum_and_difference_is_true(language: Language) -> None:
    for first in range(100):
        for second in range(100):
            assert check_equations(worked_answer(first, second, "+", language)) >= 2
            if first >= second:
                assert check_equations(worked_answer(first, second, "-", language)) >= 2


def test_worked_answers_as_written() -> None:
    assert worked_answer(37, 48, "+", "zh") == "37+48：个位7+8=15，写5进1；十位3+4+1=8。所以37+48=85。"
    assert worked_answer(52, 37, "-", "zh") == "52-37：个位2小于7，借1，12-7=5；十位5-3-1=1。所以52-37=15。"
    assert worked_answer(97, 42, "+", "en") == "97+42: ones 7+2=9; tens 9+4=13. So 97+42=139."
    assert worked_answer(1, 1, "+", "en") == "1+1: ones 1+1=2. So 1+1=2."


def test_a_fifth_of_the_pairs_is_reserved_whatever_their_order() -> None:
    pairs = [(first, second) for first in range(10, 100) for second in range(10, 100)]
    reserved = [pair for pair in pairs if is_reserved(*pair)]
    assert 0.18 < len(reserved) / len(pairs) < 0.22
    assert all(is_reserved(second, first) for first, second in reserved)


def test_arithmetic_rows_stay_in_their_range_and_split() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        first, second = TASKS["arithmetic"].draw(rng, "test").facts["pair"]
        assert 10 <= min(first, second) <= max(first, second) <= 99
        assert is_reserved(first, second)
        row = TASKS["arithmetic"].draw(rng, "train")
        assert not is_reserved(*row.facts["pair"])
        assert row.facts["result"] >= 0


def test_arithmetic_judge_wants_the_result_last() -> None:
    task = TASKS["arithmetic"]
    row = Row(task="arithmetic", messages=[], facts={"pair": [37, 48], "sign": "+", "result": 85})
    assert task.judge(row, reply("37+48=85。")).correct
    assert not task.judge(row, reply("85 不对，37+48=86。")).correct
    assert not task.judge(row, reply("37+48=185")).correct
    assert task.judge(row, reply("不知道")).reason == "no number in the answer; expected 85"


def test_chicken_problems_are_all_there_and_the_classic_one_is_trained() -> None:
    num_all = sum(heads - 1 for heads in range(MIN_HEADS, MAX_HEADS + 1))
    assert len(PROBLEMS["train"]) + len(PROBLEMS["test"]) == num_all
    assert not set(PROBLEMS["train"]) & set(PROBLEMS["test"])
    assert len(PROBLEMS["test"]) >= 0.2 * num_all
    assert not is_held_out(35, 94)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_chicken_solution_is_true_and_accepted(language: Language) -> None:
    task = TASKS["chicken_rabbit"]
    for heads, feet in [*PROBLEMS["train"], *PROBLEMS["test"]]:
        rabbits = feet // 2 - heads
        text = solution(heads, feet, language)
        assert check_equations(text) >= 5
        row = Row(
            task=task.name,
            messages=[],
            facts={"chickens": heads - rabbits, "rabbits": rabbits, "heads": heads},
        )
        assert task.judge(row, reply(text)).correct
        other = Row(task=task.name, messages=[], facts={"chickens": rabbits + 1, "rabbits": rabbits})
        if rabbits + 1 != heads - rabbits:
            assert not task.judge(other, reply(text)).correct


def test_table_judge_compares_every_cell() -> None:
    task = TASKS["tables"]
    for row in draw("tables", 200):
        head, cells = row.facts["head"], row.facts["cells"]
        assert parse_markdown_table(markdown_table(head, cells)) == [head, *cells]
        changed = [[*line] for line in cells]
        changed[-1][-1] = "7" + changed[-1][-1]
        assert not task.judge(row, reply(markdown_table(head, changed))).correct
        assert not task.judge(row, reply(markdown_table(head, cells[:-1]))).correct
        assert not task.judge(row, reply("\n".join(str(line) for line in cells))).correct
        question = row.messages[0]["content"]
        assert all(cell in question for line in cells for cell in line)


@pytest.mark.parametrize("name", ["summary", "rephrase", "similar_questions"])
def test_rewriting_judges_want_every_slot_and_the_form(name: str) -> None:
    task = TASKS[name]
    for row in draw(name, 300):
        target = row.facts["target"]
        assert not task.judge(row, reply(row.facts["source"])).correct
        assert not task.judge(row, reply("")).correct
        for value in row.facts["kept"].values():
            assert value in row.messages[0]["content"]
            assert not task.judge(row, reply(target.replace(value, "某某"))).correct
    if name == "similar_questions":
        assert not task.judge(row, reply("\n".join(target.split("\n")[:2]))).correct


def test_summaries_are_shorter_than_their_sources() -> None:
    assert all(len(row.facts["target"]) < len(row.facts["source"]) / 1.5 for row in draw("summary", 300))


def test_tool_rows_call_what_is_offered_with_values_from_the_question() -> None:
    kinds = set()
    for row in draw("tool_call", 1500):
        kinds.add(row.facts["kind"])
        assert row.tools is not None and 1 <= len(row.tools) <= 3
        names = [tool["function"]["name"] for tool in row.tools]
        assert len(set(names)) == len(names)
        for message in row.messages:
            for call in message.get("tool_calls", []):
                function = call["function"]
                schema = row.tools[names.index(function["name"])]["function"]["parameters"]
                assert set(schema["required"]) <= set(function["arguments"]) <= set(schema["properties"])
                for value in function["arguments"].values():
                    assert str(value) in row.messages[0]["content"]
    assert kinds == {family.kind for family in FAMILIES} | {"plain"}


def test_tool_judge() -> None:
    task = TASKS["tool_call"]
    for row in draw("tool_call", 400):
        reference = row.messages[-1]
        assert task.judge(row, reference).correct
        if "call" in row.facts:
            call = row.facts["call"]
            as_text = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
            assert task.judge(row, reply("", tool_calls=[{"type": "function", "function": as_text}])).correct
            other = {"name": call["name"] + "_x", "arguments": call["arguments"]}
            assert not task.judge(row, reply("", tool_calls=[{"function": other}])).correct
            other = {"name": call["name"], "arguments": {**call["arguments"], "more": 1}}
            assert not task.judge(row, reply("", tool_calls=[{"function": other}])).correct
            assert not task.judge(row, reply("", tool_calls=reference["tool_calls"] * 2)).correct
            assert not task.judge(row, reply(str(call))).correct
        else:
            calls = [{"function": {"name": "get_time", "arguments": {}}}]
            assert not task.judge(row, reply(reference["content"], tool_calls=calls)).correct
            assert not task.judge(row, reply("嗯")).correct


def test_conversations_are_plain_and_bounded() -> None:
    rows = list(generate_rows(300, "train", 1, conversation_share=1.0))
    assert all(row.task == CONVERSATION and row.tools is None for row in rows)
    assert all(message["role"] in ("user", "assistant") for row in rows for message in row.messages)
    lengths = [sum(len(message["content"]) for message in row.messages) for row in rows]
    assert max(lengths) <= MAX_CONVERSATION_CHARACTERS + 700  # two rows always stay
    assert max(lengths) > 1000


def test_rows_depend_on_the_seed_alone(tmp_path: Any) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_jsonl(first, 300, "train", 5)
    write_jsonl(second, 300, "train", 5)
    assert first.read_bytes() == second.read_bytes()
    write_jsonl(second, 300, "train", 6)
    assert first.read_bytes() != second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]
    records = [json.loads(line) for line in first.read_text(encoding="utf-8").splitlines()]
    assert len(records) == 300
    assert all(set(record) - {"tools"} == {"messages", "task", "wording", "facts"} for record in records)


def test_rows_of_chosen_tasks_only() -> None:
    rows = generate_rows(100, "test", 0, tasks=["tables", "summary"])
    assert {row.task for row in rows} == {"tables", "summary"}
    with pytest.raises(UsageError, match="no demo task 'sonnets'"):
        list(generate_rows(1, "test", 0, tasks=["sonnets"]))

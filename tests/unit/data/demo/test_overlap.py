"""Nothing that is tested was trained: wordings, questions, numbers, names."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from telechat.data.demo import TASKS, Row, generate_rows, values
from telechat.data.demo.arithmetic import is_reserved
from telechat.data.demo.chicken_rabbit import MAX_HEADS, is_held_out
from telechat.data.demo.rows import CONVERSATION

NUM_TRAIN_ROWS = 50_000
NUM_TEST_ROWS_PER_TASK = 500
LARGEST_TRAINED_NUMBER = 2 * MAX_HEADS  # what arithmetic and chicken-rabbit steps work with
PAIR = re.compile(r"(?<![\d.+\-*/])(\d{1,3})\s*[-+]\s*(\d{1,3})(?![\d.])")


@pytest.fixture(scope="module")
def train_rows() -> list[Row]:
    return list(generate_rows(NUM_TRAIN_ROWS, "train", 1234))


def held_out_rows_of(task: str) -> Iterator[Row]:
    rng = random.Random(f"overlap {task}")
    return (TASKS[task].draw(rng, "test") for _ in range(NUM_TEST_ROWS_PER_TASK))


def question(row: Row) -> str:
    """All that the user said."""
    return "\n".join(message["content"] for message in row.messages if message["role"] == "user")


def bare(text: str) -> str:
    """A text without spaces and punctuation, in small letters; + and - count as letters."""
    return re.sub(r"[^\w+\-{}]", "", text.lower())


@pytest.mark.parametrize("name", TASKS)
def test_wordings_are_many_and_a_fifth_is_held_out(name: str) -> None:
    train, test = TASKS[name].wordings("train"), TASKS[name].wordings("test")
    assert len(train) + len(test) >= 20
    assert 0.17 < len(test) / (len(train) + len(test)) < 0.23
    assert len(set(train)) == len(train) and len(set(test)) == len(test)
    assert not {bare(wording) for wording in train} & {bare(wording) for wording in test}


def test_trained_rows_use_trained_wordings(train_rows: list[Row]) -> None:
    held_out = {name: set(task.wordings("test")) for name, task in TASKS.items()}
    trained = {name: set(task.wordings("train")) for name, task in TASKS.items()}
    for row in train_rows:
        if row.task == CONVERSATION:
            used = [part.split(": ", 1) for part in row.wording.split(" | ")]
        else:
            used = [[row.task, row.wording]]
        for name, wording in used:
            assert wording not in held_out[name]
            assert wording in trained[name]


@pytest.mark.parametrize("name", TASKS)
def test_tested_rows_use_held_out_wordings(name: str) -> None:
    held_out = set(TASKS[name].wordings("test"))
    assert all(row.wording in held_out for row in held_out_rows_of(name))


def test_no_tested_question_was_trained(train_rows: list[Row]) -> None:
    trained = {question(row) for row in train_rows}
    trained |= {
        message["content"] for row in train_rows for message in row.messages if message["role"] == "user"
    }
    for name in TASKS:
        for row in held_out_rows_of(name):
            assert question(row) not in trained, (name, row.wording)


def test_no_reserved_pair_of_numbers_is_trained_in_any_task(train_rows: list[Row]) -> None:
    num_pairs = 0
    for row in train_rows:
        for message in row.messages:
            for first, second in PAIR.findall(message["content"] or ""):
                if max(int(first), int(second)) <= LARGEST_TRAINED_NUMBER:
                    num_pairs += 1
                    assert not is_reserved(int(first), int(second)), (row.task, message["content"])
        if row.task == "arithmetic":
            assert not is_reserved(*row.facts["pair"])
        if row.task == "chicken_rabbit":
            assert not is_held_out(row.facts["heads"], row.facts["feet"])
    assert num_pairs > 10_000  # the pattern does find the pairs


def test_tested_numbers_are_reserved() -> None:
    assert all(is_reserved(*row.facts["pair"]) for row in held_out_rows_of("arithmetic"))
    assert all(
        is_held_out(row.facts["heads"], row.facts["feet"]) for row in held_out_rows_of("chicken_rabbit")
    )


POOLS = {
    name: pool
    for name, pool in vars(values).items()
    if name.isupper() and name[0] != "_" and isinstance(pool, dict)
}
assert len(POOLS) > 10


@pytest.mark.parametrize("name", POOLS)
def test_pools_hold_out_values_made_of_trained_characters(name: str) -> None:
    train, test = POOLS[name]["train"], POOLS[name]["test"]
    assert len(test) >= 20
    assert not set(train) & set(test)
    assert not {c for value in test for c in value} - {c for value in train for c in value}

"""The loop: how often answers tell what they gained."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.unit.engine.engine_samples import GREEDY, random_prompts, tiny_llm

from telechat.engine.channel import Add, Close, Order, Report
from telechat.engine.loop import EngineLoop
from telechat.engine.outputs import Delta

NUM_TOKENS = 20


def deltas_of_three(deltas_per_second: float) -> dict[int, list[Delta]]:
    """What three requests of NUM_TOKENS tokens tell, by key."""
    llm = tiny_llm()
    loop = EngineLoop(llm.engine, llm.intake, deltas_per_second=deltas_per_second)
    params = GREEDY.replace(max_tokens=NUM_TOKENS, ignore_eos=True)
    orders: list[Order] = [Add(key, prompt, params) for key, prompt in enumerate(random_prompts(3, seed=1))]
    told: dict[int, list[Delta]] = {}

    def receive(must_wait: bool) -> Sequence[Order]:
        taken = orders.copy()
        orders.clear()
        return taken or ([Close()] if must_wait else [])

    def send(report: Report) -> None:
        for letter in report.letters:
            assert isinstance(letter.item, Delta)
            told.setdefault(letter.key, []).append(letter.item)

    loop.run(receive, send)
    return told


@pytest.mark.parametrize("deltas_per_second", [1e9, 1e-3])
def test_deltas_together_are_the_answer(deltas_per_second: float) -> None:
    for deltas in deltas_of_three(deltas_per_second).values():
        assert sum(len(delta.token_ids) for delta in deltas) == NUM_TOKENS
        assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]


def test_without_a_limit_tokens_come_one_by_one() -> None:
    often, seldom = deltas_of_three(1e9), deltas_of_three(1e-3)
    for key, deltas in often.items():
        assert len(deltas) > 2
        assert "".join(delta.text for delta in deltas) == "".join(delta.text for delta in seldom[key])


def test_beyond_the_limit_only_the_first_and_the_last_do_not_wait() -> None:
    for deltas in deltas_of_three(1e-3).values():
        assert len(deltas) == 2

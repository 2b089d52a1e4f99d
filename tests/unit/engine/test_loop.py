"""The loop: how often answers tell what they gained."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tests.unit.engine.engine_samples import GREEDY, random_prompts, tiny_llm
from torch import Tensor

from telechat.engine.channel import Add, Close, Letter, Order, Report
from telechat.engine.loop import EngineLoop
from telechat.engine.outputs import Delta
from telechat.engine.work import Work

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


def test_an_answer_that_fails_ends_those_beside_it() -> None:
    """Whoever reads the error reads no further, and has nobody else to say so."""
    llm = tiny_llm()
    run, num_steps = llm.engine.runner.logits, iter(range(10**6))

    def broken_for_the_first(works: Sequence[Work]) -> Tensor:
        logits = run(works).clone()
        if next(num_steps) == 3:
            logits[0] = torch.nan
        return logits

    llm.engine.runner.logits = broken_for_the_first  # type: ignore[method-assign]
    loop = EngineLoop(llm.engine, llm.intake, deltas_per_second=1e9)
    params = GREEDY.replace(max_tokens=NUM_TOKENS, n=3, seed=1, temperature=1.0)
    orders: list[Order] = [Add(0, [30, 31], params), Add(1, [40], GREEDY)]
    letters: list[Letter] = []

    def receive(must_wait: bool) -> Sequence[Order]:
        taken = orders.copy()
        orders.clear()
        return taken or ([Close()] if must_wait else [])

    loop.run(receive, lambda report: letters.extend(report.letters))
    own = [letter.item for letter in letters if letter.key == 0]
    assert [item for item in own if isinstance(item, Exception)] == [own[-1]]
    assert "NaN" in str(own[-1])
    other = [letter.item for letter in letters if letter.key == 1]
    assert isinstance(other[-1], Delta) and other[-1].finish_reason == "length"
    # As many as the other one needs: nothing ran on for the failed ones.
    assert llm.stats().num_steps < NUM_TOKENS
    assert (llm.stats().num_running, llm.stats().num_free_blocks) == (0, llm.stats().num_blocks)

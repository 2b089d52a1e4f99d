"""No sequence of add, step and cancel leaks a slot, loses a token or mixes two answers up."""

from __future__ import annotations

from functools import cache

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.unit.engine.engine_samples import greedy_without_cache, tiny_llm, tiny_model

from telechat.engine import SamplingParams
from telechat.engine.request import Request, State

MAX_BATCH_SIZE = 3
PROMPTS = [[20], [30, 31, 32], [40] * 17, [50, 60] * 20]


@cache
def alone(prompt: int, num_tokens: int) -> list[int]:
    """What a prompt gives when nothing else runs."""
    return greedy_without_cache(tiny_model(), PROMPTS[prompt], num_tokens)


class EngineMachine(RuleBasedStateMachine):
    """Drives an engine and remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.llm = tiny_llm(max_batch_size=MAX_BATCH_SIZE, max_prefill_tokens=48)
        self.engine = self.llm.new_engine()
        self.asked: list[tuple[Request, int]] = []

    @rule(prompt=st.integers(0, len(PROMPTS) - 1), max_tokens=st.integers(1, 6))
    def add(self, prompt: int, max_tokens: int) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        [request] = self.llm.intake.make_requests(PROMPTS[prompt], params)
        self.engine.add(request)
        self.asked.append((request, prompt))

    @rule()
    def step(self) -> None:
        before = {request: len(request.token_ids) for request, _ in self.asked}
        for request in self.engine.step():
            assert len(request.token_ids) == before[request] + 1

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request, _ = data.draw(st.sampled_from(self.asked))
        self.engine.cancel(request)
        assert request.is_finished

    @invariant()
    def slots_are_used_without_gaps(self) -> None:
        running = [request for request, _ in self.asked if request.state is State.RUNNING]
        assert len(running) <= MAX_BATCH_SIZE
        assert sorted(request.slot for request in running if request.slot is not None) == list(
            range(len(running))
        )
        assert set(self.engine.scheduler.running) == set(running)
        waiting = [request for request, _ in self.asked if request.state is State.WAITING]
        assert list(self.engine.scheduler.waiting) == waiting

    @invariant()
    def cached_rows_hold_their_requests(self) -> None:
        lengths = self.engine.runner.cache.lengths
        for request in self.engine.scheduler.running:
            assert request.slot is not None
            if request.token_ids:
                assert lengths[request.slot] == request.num_tokens - 1

    @invariant()
    def answers_are_right(self) -> None:
        for request, prompt in self.asked:
            assert request.token_ids == alone(prompt, 6)[: len(request.token_ids)]
            if request.is_finished and request.finish_reason == "length":
                assert len(request.token_ids) == request.max_new_tokens

    def teardown(self) -> None:
        for _ in range(100):
            if not self.engine.has_work:
                break
            self.engine.step()
        assert not self.engine.has_work
        assert all(request.is_finished for request, _ in self.asked)
        self.answers_are_right()


EngineMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestEngineSlots = EngineMachine.TestCase

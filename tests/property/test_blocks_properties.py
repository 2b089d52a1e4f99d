"""No sequence of add, step, cancel, preempt and failure leaks a block, frees it twice, or mixes two texts."""

from __future__ import annotations

import random

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.unit.engine.scheduling import BLOCK_SIZE, request, run_step, scheduler

from telechat.engine.request import Request, State
from telechat.engine.scheduler import Scheduler
from telechat.engine.work import Step, Work

NUM_BLOCKS = 12
MAX_LENGTH = NUM_BLOCKS * BLOCK_SIZE


class Cache:
    """What a model would have stored: for each slot the text up to it."""

    def __init__(self) -> None:
        self.texts: dict[tuple[int, int], tuple[int, ...]] = {}

    def run(self, step: Step) -> None:
        """As the engine does: answers first, then what is pooled; in each, all store before any attends."""
        for is_pooled in (False, True):
            works = [work for work in step.work if (work.request.pooling is not None) == is_pooled]
            self._store(works)
            self._check(works)

    def _store(self, works: list[Work]) -> None:
        for work in works:
            ids = work.request.tokens(0, work.stop)
            for position in range(work.start, work.stop):
                block = work.request.block_table[position // BLOCK_SIZE]
                self.texts[block, position % BLOCK_SIZE] = tuple(ids[: position + 1])

    def _check(self, works: list[Work]) -> None:
        """Each token finds at its earlier positions exactly its own text."""
        for work in works:
            ids = work.request.tokens(0, work.stop)
            for position in range(work.stop):
                block = work.request.block_table[position // BLOCK_SIZE]
                assert self.texts[block, position % BLOCK_SIZE] == tuple(ids[: position + 1])


def check_blocks(policy: Scheduler) -> None:
    """Every block is either free or in as many tables as it counts users."""
    blocks = policy.blocks
    users = [0] * blocks.num_blocks
    for one in policy.running:
        assert len(set(one.block_table)) == len(one.block_table)
        assert len(one.block_table) >= blocks.blocks_for(one.num_computed_tokens)
        for block in one.block_table:
            users[block] += 1
    assert users == blocks._num_users
    assert set(blocks._free) == {block for block, count in enumerate(users) if not count}
    assert blocks.num_cached == sum(blocks._names[block] is not None for block in blocks._free)
    assert {name: block for block, name in enumerate(blocks._names) if name} == blocks._block_of


def one_step(policy: Scheduler, cache: Cache, *, num_accepted: int = 0, token_id: int = 7) -> None:
    schedule = policy.schedule

    def watched() -> Step:
        step = schedule()
        cache.run(step)
        return step

    policy.schedule = watched  # type: ignore[method-assign]
    try:
        run_step(policy, token_id, num_accepted=num_accepted)
    finally:
        policy.schedule = schedule  # type: ignore[method-assign]


def random_request(draw: random.Random) -> Request:
    """Texts of two letters from one of three beginnings, so that prefixes often meet."""
    head = [draw.choice((1, 2, 3))] * draw.randrange(0, 20)
    prompt = [*head, *(draw.choice((4, 5)) for _ in range(draw.randrange(1, 8)))]
    return request(
        prompt,
        max_tokens=draw.randrange(1, MAX_LENGTH - len(prompt)),
        priority=draw.choice((0, 0, 0, 1)),
        tenant=draw.choice("aab"),
        pooling=draw.choice((None, None, None, None, "mean", "last")),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler and remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = scheduler(NUM_BLOCKS, max_batch_size=5, max_batch_tokens=16)
        self.cache = Cache()
        self.asked: list[Request] = []

    @rule(seed=st.integers(0, 10**6))
    def add(self, seed: int) -> None:
        self.asked.append(random_request(random.Random(seed)))
        self.policy.add(self.asked[-1])

    @rule(num_accepted=st.integers(0, 3), token_id=st.sampled_from((4, 5)))
    def step(self, num_accepted: int, token_id: int) -> None:
        for one in self.policy.running:
            if one.token_ids:
                one.draft_token_ids = [4] * (num_accepted + one.number % 2)
        one_step(self.policy, self.cache, num_accepted=num_accepted, token_id=token_id)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.policy.finish(data.draw(st.sampled_from(self.asked)))

    @precondition(lambda self: self.policy.running)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self.policy.preempt(data.draw(st.sampled_from(self.policy.running)))

    @rule()
    def fail(self) -> None:
        step = self.policy.schedule()
        for one in self.policy.abandon_running():
            assert one.state is State.FINISHED
        assert all(work.request.state is State.FINISHED for work in step.work)

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        check_blocks(self.policy)

    def teardown(self) -> None:
        for _ in range(5000):
            if not self.policy.has_work:
                break
            one_step(self.policy, self.cache)
        assert not self.policy.has_work
        assert self.policy.blocks.num_free == NUM_BLOCKS
        assert all(one.state is State.FINISHED for one in self.asked)


SchedulerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase


def test_after_ten_thousand_random_operations_every_block_is_free() -> None:
    draw, cache = random.Random(5), Cache()
    policy = scheduler(NUM_BLOCKS, max_batch_size=5, max_batch_tokens=16)
    for _ in range(10_000):
        match draw.choices(("add", "step", "cancel", "preempt"), (2, 12, 1, 1))[0]:
            case "add":
                policy.add(random_request(draw))
            case "step":
                one_step(policy, cache, num_accepted=draw.randrange(3), token_id=draw.choice((4, 5)))
            case "cancel" if policy.running:
                policy.finish(draw.choice(policy.running))
            case "preempt" if policy.running:
                policy.preempt(draw.choice(policy.running))
    assert policy.counters.num_preemptions > 500 and policy.counters.num_prefix_hit_tokens > 1000
    check_blocks(policy)
    while policy.has_work:
        one_step(policy, cache)
    assert policy.blocks.num_free == policy.blocks.num_blocks == NUM_BLOCKS

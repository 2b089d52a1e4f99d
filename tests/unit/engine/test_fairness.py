"""Tenants: one who floods the engine delays himself."""

from __future__ import annotations

import pytest
from tests.unit.engine.scheduling import lengths, request, run_step, scheduler

from telechat.engine.request import Request
from telechat.engine.scheduler import Scheduler


def steps_to_first_token(policy: Scheduler, one: Request, limit: int = 1000) -> int:
    """Steps from its arrival on, the one in which the token comes included."""
    policy.add(one)
    for count in range(1, limit):
        run_step(policy)
        if one.token_ids:
            return count
    raise AssertionError("never served")


@pytest.mark.parametrize("prompt_length", [3, 64, 150, 400])
@pytest.mark.parametrize("num_blocks", [4000, 300])
def test_a_flood_delays_another_tenants_first_token_by_at_most_twice(
    prompt_length: int, num_blocks: int
) -> None:
    settings = {"max_batch_size": 16, "max_batch_tokens": 64}
    alone = steps_to_first_token(scheduler(num_blocks, **settings), request(prompt_length))
    for steps_before in (0, 1, 5, 40):
        policy = scheduler(num_blocks, **settings)
        for number in range(500):
            policy.add(request(5 + number % 60, max_tokens=30, tenant="flood"))
        for _ in range(steps_before):
            run_step(policy)
        flooded = steps_to_first_token(policy, request(prompt_length, tenant="other"))
        # One more for the tokens that 15 running requests take of each step's budget.
        assert flooded <= max(2 * alone, 1), f"{flooded} steps instead of {alone}"


@pytest.mark.parametrize("prompt_length", [256, 512, 1500])
def test_a_flood_of_like_prompts_delays_another_by_at_most_twice_in_work(prompt_length: int) -> None:
    """Work counted in tokens: half of the step during which it arrives, and all until its first token."""
    for steps_before in (8, 20, 50):
        policy = scheduler(20000, max_batch_size=64, max_batch_tokens=512)
        for _ in range(500):
            policy.add(request(prompt_length, max_tokens=16, tenant="flood"))
        for _ in range(steps_before):
            work = run_step(policy).num_tokens / 2
        policy.add(one := request(prompt_length, tenant="other"))
        while not one.token_ids:
            work += run_step(policy).num_tokens
        assert work <= 2 * prompt_length, f"{work} tokens"


def test_two_floods_share_evenly() -> None:
    policy = scheduler(max_batch_size=8)
    for number in range(200):
        policy.add(request(5 + number % 7, max_tokens=10, tenant="ab"[number >= 100]))
    computed = {"a": 0, "b": 0}
    for _ in range(100):
        for one, count in lengths(run_step(policy)).items():
            computed[one.tenant] += count
    assert abs(computed["a"] - computed["b"]) < 0.1 * sum(computed.values())


def test_who_comes_back_does_not_collect_what_was_not_asked_for() -> None:
    policy = scheduler(max_batch_size=2)
    for _ in range(150):
        policy.add(request(20, tenant="busy"))
    for _ in range(100):
        run_step(policy)
    for _ in range(150):
        policy.add(request(20, tenant="back"))
    computed = {"busy": 0, "back": 0}
    for _ in range(100):
        for one, count in lengths(run_step(policy)).items():
            computed[one.tenant] += count
    assert abs(computed["busy"] - computed["back"]) < 0.15 * sum(computed.values())


def test_tenants_that_left_leave_nothing_behind() -> None:
    policy = scheduler()
    for number in range(30):
        policy.add(request(tenant=str(number)))
    for _ in range(200):
        run_step(policy)
    assert not policy.has_work
    waiting = policy.waiting
    assert not (waiting._num_served or waiting._num_present or waiting._lanes or waiting.num_running)

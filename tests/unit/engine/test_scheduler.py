"""Scheduling policy, without a model."""

from __future__ import annotations

from tests.unit.engine.engine_samples import ByteTokenizer

from telechat.engine import SamplingParams
from telechat.engine.request import Request, State
from telechat.engine.scheduler import Move, Scheduler
from telechat.engine.text import TextStream


def request(prompt_length: int = 3) -> Request:
    return Request(
        prompt_token_ids=[9] * prompt_length,
        params=SamplingParams(),
        max_new_tokens=5,
        stop_token_ids=frozenset(),
        text_stream=TextStream(ByteTokenizer().stream_decoder()),
    )


def scheduler(max_batch_size: int = 4, max_prefill_tokens: int = 100) -> Scheduler:
    return Scheduler(max_batch_size=max_batch_size, max_prefill_tokens=max_prefill_tokens)


def test_first_come_first_served_up_to_the_batch_size() -> None:
    policy = scheduler(max_batch_size=2)
    requests = [request() for _ in range(3)]
    for one in requests:
        policy.add(one)
    step = policy.schedule()
    assert step.decode == ()
    assert set(step.prefill) == set(requests[:2])
    assert requests[2].state is State.WAITING
    assert policy.schedule().decode == step.prefill
    policy.remove([requests[0]])
    assert policy.schedule().prefill == (requests[2],)


def test_admitted_prompts_are_sorted_and_slots_follow_the_running_ones() -> None:
    policy = scheduler()
    first = request()
    policy.add(first)
    policy.schedule()
    long, short = request(20), request(2)
    policy.add(long)
    policy.add(short)
    step = policy.schedule()
    assert step.decode == (first,)
    assert step.prefill == (short, long)
    assert [one.slot for one in (first, short, long)] == [0, 1, 2]


def test_prefill_budget_counts_padding_but_lets_one_long_prompt_through() -> None:
    policy = scheduler(max_prefill_tokens=30)
    huge, other = request(50), request(2)
    policy.add(huge)
    policy.add(other)
    assert policy.schedule().prefill == (huge,)
    assert policy.schedule().prefill == (other,)
    small, medium = request(4), request(16)
    policy.add(small)
    policy.add(medium)
    assert policy.schedule().prefill == (small,)  # padded together they would be 2 x 16 tokens


def test_the_last_running_request_fills_a_gap() -> None:
    policy = scheduler()
    requests = [request() for _ in range(4)]
    for one in requests:
        policy.add(one)
    policy.schedule()
    by_slot = list(policy.running)
    assert policy.remove([by_slot[1]]) == [Move(3, 1)]
    assert policy.running == [by_slot[0], by_slot[3], by_slot[2]]
    assert [one.slot for one in policy.running] == [0, 1, 2]
    assert policy.remove([by_slot[2]]) == []
    assert policy.remove([by_slot[0], by_slot[3]]) == [Move(1, 0)]
    assert not policy.has_work


def test_a_waiting_request_can_be_removed() -> None:
    policy = scheduler(max_batch_size=1)
    first, second = request(), request()
    policy.add(first)
    policy.add(second)
    policy.schedule()
    assert policy.remove([second]) == []
    assert second.state is State.FINISHED
    assert not policy.waiting

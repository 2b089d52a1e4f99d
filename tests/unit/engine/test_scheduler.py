"""Scheduling policy, without a model."""

from __future__ import annotations

import pytest
from tests.unit.engine.scheduling import BLOCK_SIZE, TRAINING_LENGTH, lengths, request, run_step, scheduler

from telechat.engine.request import State
from telechat.engine.scheduler import Scheduler
from telechat.engine.work import Work
from telechat.models import RopeMode


def drain(policy: Scheduler, limit: int = 1000) -> None:
    for _ in range(limit):
        if not policy.has_work:
            break
        run_step(policy)
    assert not policy.has_work
    assert policy.blocks.num_free == policy.blocks.num_blocks


def test_first_come_first_served_up_to_the_batch_size() -> None:
    policy = scheduler(max_batch_size=2)
    first, second, third = (request() for _ in range(3))
    for one in (first, second, third):
        policy.add(one)
    assert lengths(run_step(policy)) == {first: 3, second: 3}
    assert lengths(run_step(policy)) == {first: 1, second: 1}
    assert third.state is State.WAITING
    policy.finish(first)
    assert lengths(run_step(policy)) == {second: 1, third: 3}
    drain(policy)


def test_long_prompts_are_cut_and_running_requests_are_not_kept_waiting() -> None:
    policy = scheduler(max_batch_tokens=10)
    short, long = request(2, max_tokens=9), request(25)
    policy.add(short)
    policy.add(long)
    assert policy.schedule().work == (Work(short, 0, 2, 1, 32), Work(long, 0, 8, 0, 32))
    policy = scheduler(max_batch_tokens=10)
    for one in (short := request(2, max_tokens=9), long := request(25)):
        policy.add(one)
    assert lengths(run_step(policy)) == {short: 2, long: 8}
    assert lengths(run_step(policy)) == {short: 1, long: 9}
    step = run_step(policy)
    assert step.work == (Work(short, 3, 1, 1, 32), Work(long, 17, 8, 1, 32))
    assert len(long.token_ids) == 1
    drain(policy)


def test_prompts_that_all_fit_share_a_step() -> None:
    policy = scheduler(max_batch_tokens=20)
    small = [request(5) for _ in range(4)]
    for one in small:
        policy.add(one)
    assert lengths(run_step(policy)) == dict.fromkeys(small, 5)
    drain(policy)


def test_several_of_more_prompts_share_a_step_up_to_half_its_budget() -> None:
    policy = scheduler(max_batch_tokens=20)
    small = [request(4) for _ in range(4)]
    for one in small:
        policy.add(one)
    policy.add(long := request(40))
    assert list(lengths(run_step(policy))) == small[:3]
    assert lengths(run_step(policy)) == {small[0]: 1, small[1]: 1, small[2]: 1, small[3]: 4}
    for one in small:
        policy.finish(one)
    assert lengths(run_step(policy)) == {long: 20}
    drain(policy)


def test_a_batch_may_not_hold_more_requests_than_tokens() -> None:
    policy = scheduler(max_batch_size=8, max_batch_tokens=3)
    requests = [request(1, max_tokens=20) for _ in range(5)]
    for one in requests:
        policy.add(one)
    for _ in range(10):
        run_step(policy)
    assert [len(one.token_ids) for one in requests] == [10, 10, 9, 0, 0]
    drain(policy)


def test_blocks_are_taken_as_the_answer_grows() -> None:
    policy = scheduler()
    one = request(BLOCK_SIZE, max_tokens=BLOCK_SIZE + 2)
    policy.add(one)
    run_step(policy)
    assert len(one.block_table) == 1
    run_step(policy)
    assert len(one.block_table) == 2
    for _ in range(BLOCK_SIZE - 2):
        run_step(policy)
    assert len(one.block_table) == 2
    run_step(policy)
    assert len(one.block_table) == 3
    run_step(policy)
    assert one.state is State.FINISHED
    assert (one.block_table, policy.blocks.num_free) == ([], 100)


def test_the_latest_request_loses_its_blocks_first_and_keeps_its_tokens() -> None:
    policy = scheduler(num_blocks=6, prefix_caching=False)
    requests = [request(BLOCK_SIZE, max_tokens=12) for _ in range(3)]
    for one in requests:
        policy.add(one)
    while not policy.counters.num_preemptions:
        run_step(policy)
    first, second, third = requests
    assert (first.state, second.state, third.state) == (State.RUNNING, State.RUNNING, State.WAITING)
    assert third.block_table == [] and third.num_computed_tokens == 0
    assert len(third.token_ids) > 0
    drain(policy)
    assert [len(one.token_ids) for one in requests] == [12, 12, 12]


def test_preemption_takes_the_least_urgent_first() -> None:
    policy = scheduler(num_blocks=6, prefix_caching=False)
    urgent, patient, third = (request(BLOCK_SIZE, max_tokens=12, priority=p) for p in (0, 9, 0))
    for one in (patient, urgent, third):
        policy.add(one)
    while not policy.counters.num_preemptions:
        run_step(policy)
    assert patient.state is State.WAITING
    drain(policy)


def test_an_urgent_request_takes_the_place_of_a_patient_one() -> None:
    policy = scheduler(max_batch_size=2)
    patient = [request(3, max_tokens=50, priority=1) for _ in range(3)]
    for one in patient:
        policy.add(one)
    run_step(policy)
    urgent = request(5, priority=0)
    policy.add(urgent)
    assert lengths(run_step(policy)) == {patient[0]: 1, urgent: 5}
    assert patient[1].state is State.WAITING
    equal = request(5, priority=0)
    for _ in range(2):
        policy.add(equal) if not policy.counters.num_preemptions else None
    policy.add(equal)
    assert equal in lengths(run_step(policy))
    policy.add(another := request(5, priority=0))
    assert another not in lengths(run_step(policy))  # all running ones are as urgent
    drain(policy)


def test_a_full_prefix_hit_still_computes_the_last_token() -> None:
    policy = scheduler()
    prompt = list(range(3 * BLOCK_SIZE))
    policy.add(first := request(prompt))
    run_step(policy)
    policy.add(second := request(prompt))
    assert lengths(run_step(policy)) == {first: 1, second: BLOCK_SIZE}
    assert second.num_cached_tokens == 2 * BLOCK_SIZE
    assert first.block_table[:2] == second.block_table[:2]
    assert first.block_table[2] != second.block_table[2]
    assert policy.counters.num_prefix_hit_tokens == 2 * BLOCK_SIZE
    drain(policy)
    policy.add(longer := request([*prompt, 1, 2]))
    assert lengths(run_step(policy)) == {longer: 2}
    drain(policy)


def test_equal_prompts_of_one_step_are_computed_once() -> None:
    policy = scheduler()
    prompt = list(range(2 * BLOCK_SIZE + 1))
    requests = [request(prompt) for _ in range(3)]
    for one in requests:
        policy.add(one)
    assert list(lengths(run_step(policy)).values()) == [len(prompt), 1, 1]
    drain(policy)


def test_answers_are_found_again_by_the_next_turn() -> None:
    policy = scheduler()
    policy.add(first := request(list(range(10)), max_tokens=6))
    drain(policy)
    policy.add(second := request([*first.prompt_token_ids, *first.token_ids, 50, 51]))
    # The last token of an answer is never computed, so its block is not complete.
    assert lengths(run_step(policy)) == {second: 18 - 12}
    drain(policy)


@pytest.mark.parametrize("difference", ["salt", "off", "prompt rows"])
def test_what_must_not_be_shared_is_not(difference: str) -> None:
    policy = scheduler(prefix_caching=difference != "off")
    prompt = list(range(12))
    policy.add(request(prompt))
    run_step(policy)
    fields = {"salt": {"cache_salt": "other"}, "prompt rows": {"num_prompt_logprobs": 0}}.get(difference, {})
    policy.add(second := request(prompt, **fields))
    step = run_step(policy)
    assert lengths(step)[second] == 12
    rows = sum(work.num_logits for work in step.work if work.request is second)
    assert rows == (12 if difference == "prompt rows" else 1)
    second.prompt_logprobs = [None] * 12
    drain(policy)


def test_pooling_wants_rows_but_no_tokens() -> None:
    policy = scheduler(max_batch_tokens=8)
    mean, last = request(12, pooling="mean"), request(12, pooling="last")
    for one in (mean, last):
        policy.add(one)
    steps = [run_step(policy) for _ in range(4)]
    rows = [
        [work.num_logits for step in steps for work in step.work if work.request is one]
        for one in (mean, last)
    ]
    assert rows == [[8, 4], [0, 1]]
    assert not policy.has_work
    assert mean.token_ids == last.token_ids == []


def test_a_prompt_to_be_pooled_is_computed_last_and_shared_afterwards() -> None:
    policy = scheduler()
    prompt = list(range(2 * BLOCK_SIZE + 1))
    policy.add(pooled := request(prompt, pooling="last"))
    policy.add(second := request(prompt))
    policy.add(third := request(prompt, pooling="last"))
    # The second must not read what the first computes only after it; the third may read the second's.
    assert lengths(run_step(policy)) == {pooled: 9, second: 9, third: 1}
    drain(policy)
    policy.add(embedded := request([*range(50, 60)], pooling="last"))
    drain(policy)
    policy.add(request([*range(50, 60)]))
    run_step(policy)
    assert embedded.num_computed_tokens == 10
    assert policy.counters.num_prefix_hit_tokens == 8 + 8
    drain(policy)


def test_blocks_come_a_step_early_where_there_are_plenty() -> None:
    """A block has 4 tokens: the step that fills one brings the next."""
    for num_blocks, expected in (
        (100, [1, 2, 2, 2, 2, 3, 3]),
        (3, [1, 2, 2, 2, 2, 2, 3]),  # the last free block is not taken before it is needed
    ):
        policy = scheduler(num_blocks)
        policy.add(one := request(3, max_tokens=8))
        found = []
        for _ in expected:
            run_step(policy)
            found.append(len(one.block_table))
        assert found == expected, num_blocks
        drain(policy)


def test_drafts_are_checked_within_budget_answer_and_blocks() -> None:
    policy = scheduler(max_batch_tokens=8)
    one, other = request(3, max_tokens=9), request(2, max_tokens=20)
    policy.add(one)
    policy.add(other)
    run_step(policy)
    one.draft_token_ids, other.draft_token_ids = [7] * 4, [7] * 30
    step = run_step(policy, num_accepted=2)
    assert step.work == (Work(one, 3, 5, 5, 32), Work(other, 2, 3, 3, 32))
    assert (len(one.token_ids), len(other.token_ids)) == (4, 4)
    assert (one.num_computed_tokens, other.num_computed_tokens) == (6, 5)
    assert one.draft_token_ids == other.draft_token_ids == []
    one.draft_token_ids = [7] * 20
    assert lengths(run_step(policy, num_accepted=20))[one] == 5  # five more tokens are all it may give
    assert len(one.token_ids) == 9 and one.state is State.FINISHED
    drain(policy)
    tight = scheduler(num_blocks=1)
    tight.add(one := request(2, max_tokens=2 * BLOCK_SIZE))
    run_step(tight)
    one.draft_token_ids = [7] * 6
    assert lengths(run_step(tight)) == {one: 2}  # a draft never costs anybody a block
    tight.finish(one)


def test_refused_drafts_are_not_published() -> None:
    policy = scheduler()
    policy.add(one := request([1, 2, 3], max_tokens=20))
    run_step(policy, token_id=4)
    one.draft_token_ids = [90, 91, 92, 93]
    run_step(policy, token_id=5)
    one.draft_token_ids.clear()
    for token_id in (6, 7, 8, 0):
        run_step(policy, token_id=token_id)
    policy.finish(one)
    policy.add(same := request([1, 2, 3, 4, 5, 6, 7, 8, 9]))
    assert lengths(run_step(policy)) == {same: 1}
    policy.finish(same)
    policy.add(guessed := request([1, 2, 3, 4, 90, 91, 92, 93, 9]))
    assert lengths(run_step(policy)) == {guessed: 5}
    drain(policy)


def test_a_failed_step_leaves_blocks_and_names_consistent() -> None:
    policy = scheduler(max_batch_size=1)
    prompt = list(range(12))
    policy.add(first := request(prompt))
    policy.add(second := request(prompt))
    policy.schedule()
    assert policy.abandon_running() == [first]
    assert (first.state, policy.blocks.num_free, policy.blocks.num_cached) == (State.FINISHED, 100, 0)
    assert lengths(run_step(policy)) == {second: 12}
    drain(policy)


def test_finishing_twice_is_finishing_once() -> None:
    policy = scheduler()
    for one in (request(), request()):
        policy.add(one)
        if one.number % 2:
            run_step(policy)
        policy.finish(one)
        policy.finish(one)
        assert one.state is State.FINISHED
    assert not policy.has_work
    assert policy.waiting.num_tenants == 0


@pytest.mark.parametrize("rope_mode", ["static", "official", "consistent"])
def test_rope_modes_past_the_training_length(rope_mode: RopeMode) -> None:
    policy = scheduler(rope_mode=rope_mode)
    prompt = list(range(TRAINING_LENGTH - 1))
    policy.add(one := request(prompt, max_tokens=10))
    run_step(policy)
    within = run_step(policy)
    assert (lengths(within), within.work[0].rope_length) == ({one: 1}, TRAINING_LENGTH)
    beyond = run_step(policy)
    num_tokens = TRAINING_LENGTH + 1
    if rope_mode == "consistent":  # everything again, with the table of all tokens
        assert beyond.work == (Work(one, 0, num_tokens, 1, num_tokens),)
    else:
        length = TRAINING_LENGTH if rope_mode == "static" else num_tokens
        assert beyond.work == (Work(one, TRAINING_LENGTH, 1, 1, length),)
    drain(policy)
    # What was cached within the training length has a table that other such texts have as well.
    policy.add(again := request(prompt))
    run_step(policy)
    assert again.num_cached_tokens == (TRAINING_LENGTH - 2) // BLOCK_SIZE * BLOCK_SIZE
    # A longer prompt has another table, except in static mode.
    policy.add(longer := request([*prompt, *range(50, 60)], max_tokens=2))
    run_step(policy)
    assert longer.num_cached_tokens == (again.num_cached_tokens if rope_mode == "static" else 0)
    drain(policy)


def test_official_recomputation_gives_each_token_the_table_it_had() -> None:
    policy = scheduler(rope_mode="official", prefix_caching=False)
    policy.add(one := request(TRAINING_LENGTH - 2, max_tokens=10))
    tables: dict[int, int] = {}
    while one.num_tokens < TRAINING_LENGTH + 4:
        for work in run_step(policy).work:
            tables |= {p: max(work.rope_length, TRAINING_LENGTH) for p in range(work.start, work.stop)}
    policy.preempt(one)
    again: dict[int, int] = {}
    step = policy.schedule()
    for work in step.work:
        again |= {p: max(work.rope_length, TRAINING_LENGTH) for p in range(work.start, work.stop)}
        assert work.num_logits == (work is step.work[-1])
    assert again == {**tables, one.num_tokens - 1: one.num_tokens}
    assert len(step.work) == 5  # the first 32 tokens, then each its own

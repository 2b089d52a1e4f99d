"""Several engines as one: who gets a request, and what happens when one is gone or full."""

from __future__ import annotations

import asyncio
from array import array
from typing import Any

import pytest
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.engine import QueueFullError, SamplingParams
from telechat.engine.engine_process import EngineDiedError
from telechat.engine.outputs import Delta, EngineStats
from telechat.errors import ConfigError, PromptError
from telechat.serve.replicas import PENDING_TOKENS, PIECE_TOKENS, ReplicaSet, piece_names

GREEDY = SamplingParams(temperature=0)
A = [1] * PIECE_TOKENS
B = [2] * PIECE_TOKENS
C = [3] * PIECE_TOKENS


class Answers:
    """A stream of two pieces that ends as its replica is told to end."""

    def __init__(self, replica: FakeReplica) -> None:
        self._replica = replica
        self._num_said = 0
        self.is_closed = False

    def __aiter__(self) -> Answers:
        return self

    async def __anext__(self) -> Delta:
        if self._num_said == self._replica.dies_after:
            raise EngineDiedError("killed")
        self._num_said += 1
        if self._num_said > 2:
            raise StopAsyncIteration
        return Delta(f"{self._num_said}", [self._num_said])

    async def aclose(self) -> None:
        self.is_closed = True


class FakeReplica(FakeEngine):
    """An engine that only notes what it is asked; `num_pending` is the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.num_pending = 0
        self.asked: list[list[int]] = []
        self.is_closed = False
        # Pieces of an answer after which it dies; None: it lives.
        self.dies_after: int | None = None

    def stream(self, prompt_ids: list[int], params: SamplingParams, **more: Any) -> Any:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(prompt_ids)
        return Answers(self)

    async def embed(self, prompt_ids: list[int], pooling: Any = "mean", **more: Any) -> array[float]:
        self.asked.append(prompt_ids)
        if self.dies_after is not None:
            raise EngineDiedError("killed")
        return array("f", [1.0])

    def close(self) -> None:
        self.is_closed = True


def three() -> tuple[ReplicaSet, list[FakeReplica]]:
    replicas = [FakeReplica() for _ in range(3)]
    return ReplicaSet(replicas), replicas


def chosen(service: ReplicaSet, replicas: list[FakeReplica], prompt: list[int]) -> int:
    """The number of the replica that gets this prompt."""
    before = [len(replica.asked) for replica in replicas]
    service.stream(prompt, GREEDY)
    (number,) = [number for number, replica in enumerate(replicas) if len(replica.asked) > before[number]]
    return number


def test_the_least_loaded_gets_what_nobody_has_seen() -> None:
    service, replicas = three()
    replicas[0].num_pending, replicas[1].num_pending, replicas[2].num_pending = 3, 1, 2
    assert chosen(service, replicas, A) == 1
    replicas[1].num_pending = 5
    assert chosen(service, replicas, B) == 2


def test_the_one_that_has_seen_most_of_the_beginning() -> None:
    service, replicas = three()
    replicas[0].num_pending = 1
    assert chosen(service, replicas, 4 * A + B) == 1
    replicas[1].num_pending = 2
    assert chosen(service, replicas, 4 * A + C) == 1
    assert chosen(service, replicas, 4 * A + B + C) == 1
    # Equal text elsewhere than at the beginning is worth nothing.
    assert chosen(service, replicas, B + 4 * A) == 2
    replicas[2].num_pending = 3
    assert chosen(service, replicas, B + 4 * A + C) == 2
    # Nor is a beginning shorter than a piece.
    assert chosen(service, replicas, A[:-1]) == 0


def test_a_common_beginning_does_not_load_one_alone() -> None:
    """Three known pieces are worth the wait for fewer than three answers."""
    assert PENDING_TOKENS == PIECE_TOKENS
    service, replicas = three()
    assert chosen(service, replicas, 3 * A) == 0
    replicas[0].num_pending = 2
    assert chosen(service, replicas, 3 * A) == 0
    replicas[0].num_pending = 3
    assert chosen(service, replicas, 3 * A) == 1
    replicas[1].num_pending = 1
    # Both have seen it now.
    assert chosen(service, replicas, 3 * A) == 1


def test_a_dead_one_is_left_out_until_it_is_back() -> None:
    service, replicas = three()
    assert chosen(service, replicas, 2 * A) == 0
    replicas[0].is_alive = False
    assert chosen(service, replicas, 2 * A) == 1
    replicas[0].is_alive = True
    replicas[0].num_restarts = 1
    replicas[1].num_pending = 1
    # Back again, it has forgotten what it had seen: the other one has seen it.
    assert chosen(service, replicas, 2 * A) == 1
    assert chosen(service, replicas, B) == 0


def test_alive_while_one_is() -> None:
    service, replicas = three()
    for replica in replicas:
        assert service.is_alive
        replica.is_alive = False
    assert not service.is_alive


@pytest.mark.parametrize("error", [EngineDiedError("dead"), QueueFullError("full")])
def test_one_that_refuses_at_the_last_moment_is_passed_over(error: Exception) -> None:
    service, replicas = three()
    replicas[0].refusal = error
    assert chosen(service, replicas, A) == 1
    for replica in replicas:
        replica.refusal = error
    with pytest.raises(type(error)):
        service.stream(A, GREEDY)


def said(service: ReplicaSet) -> str:
    async def read() -> str:
        return "".join([delta.text async for delta in service.stream(A, GREEDY)])

    return asyncio.run(read())


def test_one_that_dies_before_the_answer_begins_is_replaced() -> None:
    service, replicas = three()
    replicas[0].dies_after = 0
    replicas[1].dies_after = 0
    replicas[1].num_pending, replicas[2].num_pending = 1, 2

    stream = service.stream(A, GREEDY)
    # An engine that has died is known as dead by the time its requests hear of it.
    replicas[0].is_alive = replicas[1].is_alive = False

    async def read() -> str:
        return "".join([delta.text async for delta in stream])

    assert asyncio.run(read()) == "12"
    assert [len(replica.asked) for replica in replicas] == [1, 0, 1]


def test_one_that_dies_later_is_an_error() -> None:
    service, replicas = three()
    replicas[0].dies_after = 1
    with pytest.raises(EngineDiedError):
        said(service)
    assert [len(replica.asked) for replica in replicas] == [1, 0, 0]


def test_not_for_ever() -> None:
    service, replicas = three()
    for replica in replicas:
        replica.dies_after = 0
    with pytest.raises(EngineDiedError):
        said(service)
    assert sum(len(replica.asked) for replica in replicas) == 3


def test_leaving_a_stream_closes_the_one_behind_it() -> None:
    service, _ = three()

    async def leave() -> bool:
        stream = service.stream(A, GREEDY)
        await anext(aiter(stream))
        await stream.aclose()
        return stream._stream.is_closed  # type: ignore[attr-defined, no-any-return]

    assert asyncio.run(leave())


def test_a_wrong_request_is_refused_once() -> None:
    service, replicas = three()
    replicas[0].refusal = PromptError("wrong")
    with pytest.raises(PromptError):
        service.stream(A, GREEDY)
    assert not replicas[1].asked


def test_what_is_remembered_is_bounded_by_the_cache() -> None:
    service, replicas = three()
    blocks = 2 * PIECE_TOKENS // 16
    for replica in replicas:
        replica.stats = EngineStats(
            num_running=0,
            num_waiting=0,
            num_blocks=blocks,
            num_free_blocks=blocks,
            num_cached_blocks=0,
            block_size=16,
            num_steps=1,
            num_computed_tokens=0,
            num_generated_tokens=0,
            num_prefix_hit_tokens=0,
            num_preemptions=0,
        )
    replicas[1].num_pending = replicas[2].num_pending = 1
    for prompt in (A, B, C):
        assert chosen(service, replicas, prompt) == 0
    replicas[0].num_pending = 1
    assert chosen(service, replicas, C) == 0
    assert chosen(service, replicas, B) == 0
    replicas[0].num_pending = 2
    # The oldest one is forgotten.
    assert chosen(service, replicas, A) == 1


def test_embeddings_go_to_the_least_loaded() -> None:
    service, replicas = three()
    replicas[0].num_pending = 1
    assert asyncio.run(service.embed(A)) == array("f", [1.0])
    assert replicas[1].asked == [A]
    replicas[1].dies_after = 0
    assert asyncio.run(service.embed(B)) == array("f", [1.0])
    assert replicas[2].asked == [B]


def test_closing_closes_all() -> None:
    service, replicas = three()
    service.close()
    assert all(replica.is_closed for replica in replicas)


def test_none_is_not_enough() -> None:
    with pytest.raises(ConfigError):
        ReplicaSet([])


def test_names_of_pieces() -> None:
    assert piece_names(A[:-1]) == []
    one, two = piece_names(A + B + [7])
    assert piece_names(A + B) == [one, two]
    assert piece_names(A + C)[0] == one and piece_names(A + C)[1] != two
    assert piece_names(B)[0] not in (one, two)

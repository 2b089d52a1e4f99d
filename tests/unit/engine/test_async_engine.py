"""`AsyncEngine`: many at once, each cancellable, errors kept apart."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.unit.engine.engine_samples import GREEDY, random_prompts, tiny_llm

from telechat.engine import AsyncEngine, Delta, SamplingParams
from telechat.engine.async_engine import QueueFullError
from telechat.engine.engine import Engine
from telechat.engine.engine_process import EngineDiedError
from telechat.engine.engine_thread import EngineThread
from telechat.engine.loop import EngineClosedError, EngineStepError
from telechat.engine.outputs import EngineStats
from telechat.errors import ContextLengthError, PromptError, RequestError

pytestmark = pytest.mark.timeout(60)

LONG = GREEDY.replace(max_tokens=120)


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[AsyncEngine]:
    max_pending = settings.pop("max_pending", 100)
    engine = AsyncEngine(tiny_llm(**settings), max_pending=max_pending)
    try:
        yield engine
    finally:
        engine.close()
    assert not engine.is_alive and not engine.worker.is_alive


def inner(engine: AsyncEngine) -> Engine:
    """The engine on the worker's thread."""
    assert isinstance(engine.worker, EngineThread)
    return engine.worker.loop.engine


async def collect(engine: AsyncEngine, prompt: list[int], params: SamplingParams) -> list[Delta]:
    return [delta async for delta in engine.stream(prompt, params)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def slow_down(engine: AsyncEngine, seconds: float = 0.01) -> None:
    """Let every step take at least this long, so that a test can act while requests run."""
    run = inner(engine).runner.logits

    def slow(step: Any) -> Any:
        time.sleep(seconds)
        return run(step)

    inner(engine).runner.logits = slow  # type: ignore[method-assign]


def test_concurrent_streams_give_what_each_gives_alone() -> None:
    prompts = random_prompts(15, seed=6)
    expected = [output.outputs[0] for output in tiny_llm().generate(prompts, GREEDY)]

    async def scenario() -> None:
        with running(max_batch_size=4) as engine:
            answers = await asyncio.gather(*(collect(engine, prompt, GREEDY) for prompt in prompts))
            assert engine.num_pending == 0
        for deltas, completion in zip(answers, expected, strict=True):
            assert "".join(delta.text for delta in deltas) == completion.text
            token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
            assert token_ids == completion.token_ids
            assert deltas[-1].finish_reason == completion.finish_reason

    asyncio.run(scenario())


def test_several_answers_are_told_apart_by_index() -> None:
    params = SamplingParams(n=3, seed=4, max_tokens=9, ignore_eos=True)
    expected = tiny_llm().generate([[30, 31]], params)[0].outputs

    async def scenario() -> None:
        with running() as engine:
            deltas = await collect(engine, [30, 31], params)
        for index, completion in enumerate(expected):
            own = [delta for delta in deltas if delta.index == index]
            assert "".join(delta.text for delta in own) == completion.text
            assert own[-1].finish_reason == "length"

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["cancel task", "close", "drop"])
def test_leaving_a_stream_frees_its_slot(how: str) -> None:
    async def scenario() -> None:
        with running(max_batch_size=1) as engine:
            slow_down(engine)
            stream = engine.stream([30], LONG)
            await stream.__anext__()
            assert engine.num_running == 1
            [request] = inner(engine).scheduler.running
            if how == "cancel task":
                task = asyncio.create_task(_drain(stream))
                await asyncio.sleep(0.02)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            elif how == "close":
                await stream.aclose()
            else:
                del stream
                gc.collect()
            generated = len(request.token_ids)
            # The only slot is free again: the next request gets it, and within a step of the cancellation.
            assert await collect(engine, [40], GREEDY.replace(max_tokens=2))
            assert request.finish_reason == "cancelled"
            assert len(request.token_ids) <= generated + 1
            assert engine.num_pending == 0

    asyncio.run(scenario())


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


def test_a_closed_stream_yields_nothing_more() -> None:
    async def scenario() -> None:
        with running() as engine:
            stream = engine.stream([30], LONG)
            await stream.__anext__()
            stream.cancel()
            assert [delta async for delta in stream] == []
            stream.receive(Delta("what was under way"))
            assert [delta async for delta in stream] == []

    asyncio.run(scenario())


def test_bad_requests_fail_at_once_and_alone() -> None:
    async def scenario() -> None:
        with running() as engine:
            with pytest.raises(PromptError):
                engine.stream([], GREEDY)
            with pytest.raises(ContextLengthError):
                engine.stream([30] * 500, GREEDY)
            assert engine.num_pending == 0
            assert await collect(engine, [30], GREEDY)

    asyncio.run(scenario())


def test_a_failing_step_ends_the_running_requests_and_the_engine_goes_on() -> None:
    async def scenario() -> None:
        with running(max_batch_size=2) as engine:
            run = inner(engine).runner.logits
            failures = iter([True])

            def failing(step: Any) -> Any:
                if len(step) == 2 and next(failures, False):
                    raise RuntimeError("out of memory")
                return run(step)

            inner(engine).runner.logits = failing  # type: ignore[method-assign]
            results = await asyncio.gather(
                *(collect(engine, [30 + n], GREEDY) for n in range(3)), return_exceptions=True
            )
            assert [isinstance(result, EngineStepError) for result in results] == [True, True, False]
            assert "out of memory" in str(results[0])
            expected = tiny_llm().generate([[32]], GREEDY)[0].text
            assert "".join(delta.text for delta in results[2]) == expected  # type: ignore[union-attr]
            assert engine.num_pending == 0

    asyncio.run(scenario())


def test_an_engine_that_fails_leaves_nobody_waiting() -> None:
    async def scenario() -> None:
        with running() as engine:

            def failing() -> None:
                raise ValueError("a bug")

            inner(engine).stats = failing  # type: ignore[method-assign, assignment]
            with pytest.raises(EngineDiedError, match="a bug"):
                await collect(engine, [30], GREEDY)
            assert not engine.is_alive
            with pytest.raises(EngineDiedError, match="not running"):
                engine.stream([30], GREEDY)

    asyncio.run(scenario())


def test_pending_requests_are_bounded() -> None:
    async def scenario() -> None:
        with running(max_batch_size=1, max_pending=2) as engine:
            slow_down(engine)
            first, second = engine.stream([30], LONG), engine.stream([31], LONG)
            with pytest.raises(QueueFullError, match="limit is 2"):
                engine.stream([32], LONG)
            first.cancel()
            await until(lambda: engine.num_pending == 1)
            third = engine.stream([32], GREEDY)
            second.cancel()
            assert [delta async for delta in third][-1].finish_reason == "length"

    asyncio.run(scenario())


def test_closing_ends_open_streams_with_an_error() -> None:
    async def scenario() -> None:
        with running(max_batch_size=1) as engine:
            slow_down(engine)
            open_streams = [asyncio.create_task(collect(engine, [30 + n], LONG)) for n in range(2)]
            await until(lambda: engine.num_running == 1)
            engine.close()
            for task in open_streams:
                with pytest.raises(EngineClosedError):
                    await task
            with pytest.raises(EngineClosedError):
                engine.stream([30], GREEDY)
            engine.close()

    asyncio.run(scenario())


def test_a_loop_that_went_away_does_not_disturb_the_others() -> None:
    with running() as engine:
        slow_down(engine)
        held: list[Any] = []

        async def start_and_leave() -> None:
            held.append(engine.stream([30], LONG))
            await held[0].__anext__()

        asyncio.run(start_and_leave())
        assert asyncio.run(collect(engine, [31], GREEDY))[-1].finish_reason == "length"
        deadline = time.monotonic() + 20
        while engine.num_pending and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.num_pending == 0


def test_an_idle_engine_does_not_spin() -> None:
    with running() as engine:
        asyncio.run(collect(engine, [30], GREEDY))
        stats, num_rounds = inner(engine).stats, 0

        def counted() -> EngineStats:
            nonlocal num_rounds
            num_rounds += 1
            return stats()

        inner(engine).stats = counted  # type: ignore[method-assign]
        time.sleep(0.2)
        assert not num_rounds and engine.is_alive
        asyncio.run(collect(engine, [30], GREEDY))
        assert num_rounds


def test_vectors_are_those_of_llm() -> None:
    prompts = random_prompts(5, seed=9)

    async def scenario(pooling: Any, normalize: bool) -> list[list[float]]:
        with running(max_batch_size=2) as engine:
            embedded = [engine.embed(prompt, pooling, normalize=normalize) for prompt in prompts]
            found, _ = await asyncio.gather(asyncio.gather(*embedded), collect(engine, prompts[0], GREEDY))
            assert engine.num_pending == 0
        return [list(vector) for vector in found]

    for pooling, normalize in (("mean", True), ("last", False)):
        expected = tiny_llm().embed(prompts, pooling=pooling, normalize=normalize)  # type: ignore[arg-type]
        vectors = asyncio.run(scenario(pooling, normalize))
        for vector, output in zip(vectors, expected, strict=True):
            assert vector == pytest.approx(output.embedding.tolist(), abs=1e-5)


def test_vectors_that_cannot_be_had() -> None:
    async def scenario() -> None:
        with running(max_pending=1) as engine:
            with pytest.raises(PromptError):
                await engine.embed([])
            with pytest.raises(ContextLengthError):
                await engine.embed([30] * 500)
            with pytest.raises(RequestError, match="pooling"):
                await engine.embed([30], "cls")  # type: ignore[arg-type]
            slow_down(engine)
            stream = engine.stream([30], LONG)
            with pytest.raises(QueueFullError):
                await engine.embed([30])
            await stream.aclose()
            task = asyncio.create_task(engine.embed([30] * 40))
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert engine.num_pending == 0
            assert len(await engine.embed([30])) > 1

    asyncio.run(scenario())


def test_what_is_known_of_the_prompt_comes_with_the_first_delta() -> None:
    prompt = list(range(30, 80))
    params = GREEDY.replace(n=2, prompt_logprobs=1, max_tokens=4)
    expected = tiny_llm().generate([prompt], params)[0].prompt_logprobs
    assert expected is not None

    async def scenario() -> None:
        with running() as engine:
            deltas = await collect(engine, prompt, params)
            again = await collect(engine, prompt, GREEDY)
        for index in (0, 1):
            first, *rest = [delta for delta in deltas if delta.index == index]
            assert first.prompt_logprobs is not None and first.prompt_logprobs[0] is None
            found = [entry.logprob for entry in first.prompt_logprobs if entry is not None]
            assert found == pytest.approx(
                [entry.logprob for entry in expected if entry is not None], abs=1e-4
            )
            assert all(delta.prompt_logprobs is None and delta.num_cached_tokens is None for delta in rest)
        assert again[0].num_cached_tokens is not None and again[0].num_cached_tokens > 0
        assert again[0].prompt_logprobs is None

    asyncio.run(scenario())

"""The service before the real engine: what a client that leaves had is free at the engine's next step."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from tests.unit.serve.asgi_calls import Call, until

from telechat.engine import LLM, AsyncEngine
from telechat.serve.admission import Admission
from telechat.serve.app import create_app
from telechat.serve.settings import ServeSettings

pytestmark = pytest.mark.timeout(120)

# The tiny model writes to the end of its context unless it is stopped.
LONG: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True, "temperature": 0}
MESSAGES = [{"role": "user", "content": "a question of some length, so that it needs blocks"}]


@pytest.fixture(scope="module")
def engine(tiny_model_folder: Path) -> Iterator[AsyncEngine]:
    made = AsyncEngine(LLM(tiny_model_folder))
    yield made
    made.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("num_answers", [1, 3])
def test_leaving_frees_memory_within_a_step(engine: AsyncEngine, stream: bool, num_answers: int) -> None:
    async def scenario() -> None:
        admission = Admission(10)
        app: FastAPI = create_app(engine, ServeSettings(), admission=admission)
        body = {"messages": MESSAGES, "stream": stream, "n": num_answers, **LONG}
        call = Call(app, "/v1/chat/completions", body)
        task = asyncio.create_task(call.run())
        await until(lambda: engine.stats is not None and engine.stats.num_running == num_answers)
        assert engine.stats is not None
        assert engine.stats.num_free_blocks < engine.stats.num_blocks
        call.leave()
        await task
        # The cancellation is on its way now. A step may be under way, and one more report of an earlier step
        # may not have arrived; the next step is without the request.
        steps_before = engine.stats.num_steps
        await until(lambda: engine.num_running == 0)
        assert engine.stats.num_steps <= steps_before + 2
        assert engine.stats.num_free_blocks == engine.stats.num_blocks
        assert engine.num_pending == 0 and admission.num_taken == 0

    asyncio.run(scenario())


def test_a_deadline_frees_memory_too(engine: AsyncEngine) -> None:
    async def scenario() -> None:
        app = create_app(engine, ServeSettings(request_seconds=0.3))
        # Answers one after the other until the deadline: 16 together take longer than that.
        call = Call(app, "/v1/chat/completions", {"messages": MESSAGES, "n": 16, **LONG})
        await asyncio.wait_for(call.run(), 60)
        assert call.status == 504
        await until(lambda: engine.num_running == 0)
        assert engine.stats is not None
        assert engine.stats.num_free_blocks == engine.stats.num_blocks

    asyncio.run(scenario())


def test_many_leave_at_many_moments(engine: AsyncEngine) -> None:
    """Leaving before, during and after every phase of an answer leaks nothing."""

    async def one(app: FastAPI, number: int) -> None:
        body = {"messages": MESSAGES, "stream": bool(number % 2), "max_tokens": 20, "temperature": 0}
        call = Call(app, "/v1/chat/completions", body)
        task = asyncio.create_task(call.run())
        await asyncio.sleep(number % 13 / 100)
        call.leave()
        await task

    async def scenario() -> None:
        admission = Admission(1000)
        app = create_app(engine, ServeSettings(), admission=admission)
        await asyncio.gather(*(one(app, number) for number in range(150)))
        await until(lambda: engine.num_running == 0 and engine.num_waiting == 0)
        assert engine.stats is not None
        assert engine.stats.num_free_blocks == engine.stats.num_blocks
        assert engine.num_pending == 0 and admission.num_taken == 0

    asyncio.run(scenario())

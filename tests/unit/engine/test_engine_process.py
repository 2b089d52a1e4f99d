"""The engine in a process of its own: same answers, errors that arrive, deaths that are survived."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.checkpoint.adapters import random_adapter

from telechat.checkpoint import AdapterConfig, read_config, resolve_model, write_adapter
from telechat.engine import LLM, AsyncEngine, SamplingParams, StructuredOutputs
from telechat.engine.engine_process import EngineDiedError, EngineProcess
from telechat.errors import ConfigError, ContextLengthError, RequestError, TelechatError
from telechat.tokenizer import Tokenizer, load_tokenizer

pytestmark = pytest.mark.timeout(120)

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
LONG = GREEDY.replace(max_tokens=1900)


def demo_tokenizer() -> Tokenizer:
    return load_tokenizer(resolve_model("demo"))


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    # Several tests kill it, one soon after the other: no reason to give it up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("telechat.engine.engine_process.SHORT_LIFE_SECONDS", 0.0)
        engine = AsyncEngine.spawn(functools.partial(LLM, "demo"), demo_tokenizer(), max_pending=20)
        yield engine
        engine.close()
    assert not engine.is_alive


async def text_of(engine: AsyncEngine, prompt: list[int], params: SamplingParams = GREEDY) -> str:
    return "".join([delta.text async for delta in engine.stream(prompt, params)])


async def until_alive(engine: AsyncEngine) -> None:
    async with asyncio.timeout(60):
        while not engine.is_alive:
            await asyncio.sleep(0.05)


def test_answers_are_those_of_an_engine_in_this_process(engine: AsyncEngine) -> None:
    prompts = [[30, 31, 32], [40, 41], [50] * 40]
    expected = [output.text for output in LLM("demo").generate(prompts, GREEDY)]

    async def scenario() -> list[str]:
        return await asyncio.gather(*(text_of(engine, prompt) for prompt in prompts))

    assert asyncio.run(scenario()) == expected
    assert engine.num_pending == 0


def test_a_bad_request_is_refused_before_it_is_sent(engine: AsyncEngine) -> None:
    async def scenario() -> None:
        with pytest.raises(ContextLengthError) as caught:
            engine.stream([30] * 5000, GREEDY)
        assert caught.value.num_tokens == 5000

    asyncio.run(scenario())


def test_a_cancelled_request_gives_its_place_back(engine: AsyncEngine) -> None:
    async def scenario() -> None:
        stream = engine.stream([30], LONG)
        await anext(stream)
        assert engine.num_running == 1
        await stream.aclose()
        assert engine.num_pending == 0
        async with asyncio.timeout(20):
            while engine.num_running:
                await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_a_killed_engine_fails_its_requests_and_is_started_again(engine: AsyncEngine) -> None:
    expected = LLM("demo").generate([[30, 31]], GREEDY)[0].text

    async def scenario() -> None:
        assert isinstance(engine.worker, EngineProcess)
        stream = engine.stream([30], LONG)
        await anext(stream)
        first = engine.worker.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        with pytest.raises(EngineDiedError, match="SIGKILL"):
            async for _ in stream:
                pass
        assert engine.num_pending == 0
        await until_alive(engine)
        assert engine.worker.pid != first
        # What the dead one had said of itself is forgotten.
        assert engine.num_running == 0 and engine.stats is None
        assert engine.num_restarts == 1
        assert await text_of(engine, [30, 31]) == expected

    asyncio.run(scenario())


def test_an_engine_started_again_has_its_adapters(engine: AsyncEngine, tmp_path: Path) -> None:
    config = read_config(resolve_model("demo"))
    settings = AdapterConfig(r=2, lora_alpha=2, target_modules=("query", "down_proj"))
    folders = {name: tmp_path / name for name in ("poet", "gone", "moved")}
    for folder in folders.values():
        write_adapter(random_adapter(config, settings=settings, size=0.5), folder, config)

    async def answer(name: str | None) -> str:
        return "".join([delta.text async for delta in engine.stream([30, 31, 32], GREEDY, adapter=name)])

    async def scenario() -> None:
        assert isinstance(engine.worker, EngineProcess) and engine.worker.pid is not None
        for name, folder in folders.items():
            await engine.load_adapter(name, folder)
        with pytest.raises(ConfigError, match=r"has no adapter_config.json"):
            await engine.load_adapter("none", tmp_path)
        before = await answer("poet")
        assert before != await answer(None)
        await engine.unload_adapter("gone")
        shutil.rmtree(folders["moved"])
        os.kill(engine.worker.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while engine.is_alive:
                await asyncio.sleep(0.005)
        await until_alive(engine)
        assert await answer("poet") == before
        # What could not be read again is not offered any more.
        assert engine.adapters == ("poet",)
        with pytest.raises(RequestError, match="no adapter 'gone'"):
            await answer("gone")
        await engine.unload_adapter("poet")

    asyncio.run(scenario())


def test_requests_while_it_is_dead_are_refused_at_once(engine: AsyncEngine) -> None:
    async def scenario() -> None:
        assert isinstance(engine.worker, EngineProcess) and engine.worker.pid is not None
        os.kill(engine.worker.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while engine.is_alive:
                await asyncio.sleep(0.005)
        with pytest.raises(EngineDiedError, match="not running"):
            engine.stream([30], GREEDY)
        await until_alive(engine)

    asyncio.run(scenario())


def test_an_error_while_loading_is_raised_where_the_user_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(TelechatError) as here:
        LLM(tmp_path)
    with pytest.raises(type(here.value)) as there:
        AsyncEngine.spawn(functools.partial(LLM, tmp_path), demo_tokenizer())
    assert str(there.value) == str(here.value)


def _die() -> LLM:
    os._exit(7)


def test_a_process_that_dies_while_loading_is_an_error() -> None:
    with pytest.raises(EngineDiedError, match="exit code 7 while loading"):
        AsyncEngine.spawn(_die, demo_tokenizer())


OWNER = """
import functools, os, sys
from telechat.checkpoint import resolve_model
from telechat.engine import LLM, AsyncEngine
from telechat.tokenizer import load_tokenizer
if __name__ == "__main__":
    tokenizer = load_tokenizer(resolve_model("demo"))
    engine = AsyncEngine.spawn(functools.partial(LLM, "demo"), tokenizer)
    print(engine.worker.pid, flush=True)
    {ending}
"""


@pytest.mark.parametrize("ending", ["os._exit(0)", "pass", "sys.exit(1)", "1 / 0"])
def test_the_process_ends_with_its_owner(ending: str, tmp_path: Path) -> None:
    """However the owner ends: without a word, or by returning without closing."""
    script = tmp_path / "owner.py"
    script.write_text(OWNER.format(ending=ending), encoding="utf-8")
    owner = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    pid = int(owner.stdout)
    deadline = time.monotonic() + 20
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def test_grammars_are_checked_on_this_side(engine: AsyncEngine) -> None:
    """The engine never hears of one that cannot be followed."""
    engine.llm.intake.check_grammar(StructuredOutputs(regex="[0-9]+"))
    with pytest.raises(RequestError, match="objekt"):
        engine.llm.intake.check_grammar(StructuredOutputs(json={"type": "objekt"}))


def test_a_vector_crosses_the_process(engine: AsyncEngine) -> None:
    expected = LLM("demo").embed([[30, 31, 32]], normalize=True)[0].embedding.tolist()
    found = asyncio.run(engine.embed([30, 31, 32], normalize=True))
    assert list(found) == pytest.approx(expected, abs=1e-5)

"""A service on several ranks survives the death of one: requests fail, and the engine is started again."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from pathlib import Path

import pytest
from tests.distributed.models import save_folder
from tests.distributed.test_rank_processes import is_alive

from telechat.engine import LLM, AsyncEngine, SamplingParams
from telechat.errors import RankError
from telechat.tokenizer import load_tokenizer

SHORT = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
LONG = SHORT.replace(max_tokens=240)


def children(pid: int) -> list[int]:
    """Process ids of a process's children, whichever of its threads started them."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for file in files for word in file.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks through /proc")
def test_a_killed_rank_fails_the_requests_and_the_engine_is_started_again(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, {"heads": 8, "kv_heads": 2, "vocab": 300})
    engine = AsyncEngine.spawn(functools.partial(LLM, folder, tp=2), load_tokenizer(folder))

    async def text() -> str:
        return "".join([delta.text async for delta in engine.stream([30, 31], SHORT)])

    async def scenario() -> None:
        expected = await text()
        pid = engine.worker.pid  # type: ignore[union-attr]
        assert pid is not None
        [rank] = [child for child in children(pid) if b"telechat.parallel" in command(child)]
        stream = engine.stream([40], LONG)
        await anext(stream)
        os.kill(rank, signal.SIGKILL)
        async with asyncio.timeout(20):
            with pytest.raises(RankError, match="Rank 1 of 2 was ended by signal 9"):
                async for _ in stream:
                    pass
        async with asyncio.timeout(150):
            while engine.worker.pid == pid or not engine.is_alive:  # type: ignore[union-attr]
                await asyncio.sleep(0.05)
        assert await text() == expected
        assert not is_alive(rank)

    try:
        asyncio.run(scenario())
    finally:
        engine.close()


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()

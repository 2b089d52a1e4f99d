"""A server among clients that behave badly, with a full disk for its log, and with an engine that is killed.

One server lives through all of it. `TELECHAT_TEST_DISCONNECTS=10000` makes the first test a long one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.operation import (
    CHAT,
    QUESTION,
    ask,
    connect,
    engine_pids,
    is_idle,
    raw_request,
    read_metrics,
    text_of,
    until,
)
from tests.e2e.servers import RunningServer, running_server

NUM_DISCONNECTS = int(os.environ.get("TELECHAT_TEST_DISCONNECTS", "300"))
NUM_AT_ONCE = 30

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300 + NUM_DISCONNECTS),
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux: /dev/full and ps --ppid"),
]


@pytest.fixture(scope="module")
def sturdy(small_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose access log lies on a full disk."""
    log = tmp_path_factory.mktemp("logs") / "sturdy.log"
    options = ("--max-model-len", "2048", "--access-log", "/dev/full", "--device", "cpu")
    with running_server(small_model_folder, log, *options) as running:
        yield running


BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": QUESTION, "stream": True, "ignore_eos": True}),
    (CHAT, {"messages": QUESTION, "n": 3, "ignore_eos": True}),
    ("/v1/completions", {"prompt": "生抽", "stream": True, "ignore_eos": True}),
    ("/telechat/gptDialog/v2", {"dialog": QUESTION, "max_length": 200}),
    ("/telechat/gptDialog/v4", {"dialog": QUESTION, "max_length": 200}),
]


async def leave_early(port: int, chance: random.Random) -> None:
    """Send a request, all of it or a part, and be gone at some moment, politely or not."""
    path, body = chance.choice(BODIES)
    if path.startswith("/v1"):
        body = {**body, "max_tokens": chance.choice([1, 20, 200])}
    content = raw_request(path, body)
    if chance.random() < 0.2:
        content = content[: chance.randrange(len(content))]
    with suppress(ConnectionError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(content)
        await writer.drain()
        if chance.random() < 0.5:
            await asyncio.sleep(chance.random() * 0.3)
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(chance.choice([1, 500, 5000])), chance.random())
        if chance.random() < 0.5:
            # Closed at once with a reset, as by a program that crashed.
            handle = writer.get_extra_info("socket")
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()


def test_clients_that_leave_at_random_moments(sturdy: RunningServer) -> None:
    expected = text_of(ask(sturdy))
    until(lambda: is_idle(sturdy), "idle before")
    before = read_metrics(sturdy)

    async def scenario() -> None:
        chance = random.Random(7)
        places = asyncio.Semaphore(NUM_AT_ONCE)

        async def one() -> None:
            async with places:
                await leave_early(sturdy.port, chance)

        await asyncio.gather(*(one() for _ in range(NUM_DISCONNECTS)))

    asyncio.run(scenario())
    until(lambda: is_idle(sturdy), "idle after")
    after = read_metrics(sturdy)
    assert after["telechat_requests_cancelled_total"] > before["telechat_requests_cancelled_total"]
    assert after["telechat_requests_failed_total"] == before["telechat_requests_failed_total"]
    until(lambda: read_metrics(sturdy)["process_open_fds"] <= before["process_open_fds"] + 3, "files closed")
    assert text_of(ask(sturdy)) == expected


def test_readers_that_never_read(sturdy: RunningServer) -> None:
    """Their answers fill their buffers; others are answered meanwhile, and nothing is left when they go."""
    expected = text_of(ask(sturdy))
    body = {"messages": QUESTION, "stream": True, "max_tokens": 1800, "ignore_eos": True}
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(connect(sturdy, receive_bytes=4096))
            client.sendall(raw_request(CHAT, body))
        until(lambda: read_metrics(sturdy)["telechat_requests_in_progress"] >= 20, "all under way")
        for _ in range(5):
            assert text_of(ask(sturdy)) == expected
    until(lambda: is_idle(sturdy), "idle")


def test_connections_that_stop_half_way(sturdy: RunningServer) -> None:
    before = read_metrics(sturdy)["process_open_fds"]
    content = raw_request(CHAT, {"messages": QUESTION})
    head = content.index(b"\r\n\r\n") + 4
    with ExitStack() as stack:
        for length in [0, 10, head - 2, head, head + 5] * 10:
            client = stack.enter_context(connect(sturdy))
            client.sendall(content[:length])
        assert ask(sturdy).status_code == 200
    until(lambda: read_metrics(sturdy)["process_open_fds"] <= before + 3, "files closed")
    assert is_idle(sturdy)


def test_a_log_on_a_full_disk_costs_its_lines_only(sturdy: RunningServer) -> None:
    before = read_metrics(sturdy)["telechat_access_log_lost_lines_total"]
    assert ask(sturdy).status_code == 200
    until(lambda: read_metrics(sturdy)["telechat_access_log_lost_lines_total"] > before, "a line lost")
    assert "the access log cannot be written: [Errno 28]" in sturdy.log.read_text(encoding="utf-8")


def last_event(lines: Iterator[str]) -> Any:
    """The last event of a stream."""
    *_, last = [line for line in lines if line.startswith("data: ")]
    return json.loads(last.removeprefix("data: "))


def test_an_engine_that_is_killed(sturdy: RunningServer) -> None:
    """Those whose answers were under way are told; the service stays, and soon answers as before."""
    expected = text_of(ask(sturdy))
    restarts = read_metrics(sturdy)["telechat_engine_restarts_total"]
    (pid,) = engine_pids(sturdy)
    # More than can be written before the engine is killed.
    long = {"max_tokens": 1900, "ignore_eos": True, "n": 8}
    body = {"messages": QUESTION, "stream": True, **long}
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.stream("POST", f"{sturdy.url}{CHAT}", json=body, trust_env=False, timeout=120) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        whole = pool.submit(ask, sturdy, **long)
        until(lambda: read_metrics(sturdy)["telechat_requests_in_progress"] == 2, "both under way")
        os.kill(pid, signal.SIGKILL)
        error = last_event(lines)["error"]
        refused = whole.result()
    assert (error["code"], error["type"]) == ("unavailable", "server_error")
    assert "SIGKILL" in error["message"]
    assert refused.status_code == 503 and "retry-after" in refused.headers
    assert refused.json()["error"]["code"] == "unavailable"
    assert sturdy.process.poll() is None
    assert httpx.get(f"{sturdy.url}/health", trust_env=False).status_code == 200
    ready = f"{sturdy.url}/ready"
    until(lambda: httpx.get(ready, trust_env=False).status_code == 200, "ready again")
    assert text_of(ask(sturdy)) == expected
    assert read_metrics(sturdy)["telechat_engine_restarts_total"] == restarts + 1
    assert engine_pids(sturdy) != [pid]
    until(lambda: is_idle(sturdy), "idle")

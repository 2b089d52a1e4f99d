"""Two engines behind one port: one may die, and the end waits for running answers."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.operation import (
    CHAT,
    QUESTION,
    ask,
    engine_pids,
    is_idle,
    read_metrics,
    text_of,
    until,
)
from tests.e2e.servers import RunningServer, running_server

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux: ps --ppid"),
]

LONG = {"messages": QUESTION, "stream": True, "max_tokens": 1500, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def pair(small_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with two engines and a log file."""
    folder = tmp_path_factory.mktemp("pair")
    options = ("--max-model-len", "2048", "--replicas", "2", "--device", "cpu")
    options += ("--access-log", str(folder / "access.jsonl"))
    with running_server(small_model_folder, folder / "server.log", *options) as running:
        yield running


def events(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            text = line.removeprefix("data: ")
            yield text if text == "[DONE]" else json.loads(text)


def test_one_of_two_dies(pair: RunningServer) -> None:
    """Its own answers end with an error; all others, and all new ones, are answered without a pause."""
    first, second = engine_pids(pair)
    expected = text_of(ask(pair))
    assert read_metrics(pair)["telechat_engine_up"] == 2
    url = f"{pair.url}{CHAT}"
    with (
        httpx.stream("POST", url, json=LONG, trust_env=False, timeout=120) as one,
        # Another beginning than the model's own system text, so that it goes to the engine with less to do.
        httpx.stream(
            "POST",
            url,
            json={**LONG, "messages": [{"role": "system", "content": "简"}, *QUESTION]},
            trust_env=False,
            timeout=120,
        ) as two,
    ):
        streams = [events(one), events(two)]
        for stream in streams:
            next(stream)
        until(lambda: read_metrics(pair)["telechat_engine_running"] == 2, "one on each")
        os.kill(first, signal.SIGKILL)
        for _ in range(3):
            assert text_of(ask(pair)) == expected
            assert httpx.get(f"{pair.url}/ready", trust_env=False).status_code == 200
        endings = [list(stream)[-1] for stream in streams]
    failed = [ending for ending in endings if isinstance(ending, dict) and "error" in ending]
    assert len(failed) == 1 and failed[0]["error"]["code"] == "unavailable"
    assert endings.count("[DONE]") == 1
    until(lambda: read_metrics(pair)["telechat_engine_up"] == 2, "both up again")
    assert second in engine_pids(pair) and first not in engine_pids(pair)
    assert read_metrics(pair)["telechat_engine_restarts_total"] == 1
    assert text_of(ask(pair)) == expected
    until(lambda: is_idle(pair), "idle")


def test_the_end_waits_for_a_running_answer(pair: RunningServer) -> None:
    """The last test of this server: it is told to stop while an answer is written."""
    engines = engine_pids(pair)
    with httpx.stream("POST", f"{pair.url}{CHAT}", json=LONG, trust_env=False, timeout=120) as response:
        stream = events(response)
        next(stream)
        pair.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(httpx.TransportError):
            ask(pair)
        *pieces, last = stream
    assert last == "[DONE]"
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"
    assert pair.process.wait(timeout=60) == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in engines), "engines ended")
    lines = (pair.log.parent / "access.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["completion_tokens"] == 1500

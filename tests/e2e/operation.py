"""What the tests of operation ask of a running server: metrics, its engines' processes, raw connections."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.servers import RunningServer

QUESTION = [{"role": "user", "content": "生抽与老抽的区别？"}]
CHAT = "/v1/chat/completions"


def read_metrics(server: RunningServer) -> dict[str, float]:
    """Sums over all labels, by name."""
    text = httpx.get(f"{server.url}/metrics", trust_env=False, timeout=60).text
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def engine_pids(server: RunningServer) -> list[int]:
    """The processes of its engines, oldest first."""
    listing = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(server.process.pid)], capture_output=True, text=True
    ).stdout
    return sorted(int(line.split()[0]) for line in listing.splitlines() if "spawn_main" in line)


def until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Wait for `condition()`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


def is_idle(server: RunningServer) -> bool:
    """Nothing is under way, and nothing of the cache is held by anybody."""
    read = read_metrics(server)
    names = (
        "telechat_requests_in_progress",
        *(f"telechat_engine_{name}" for name in ("running", "waiting", "cache_blocks_used")),
    )
    return all(read[name] == 0 for name in names)


def ask(server: RunningServer, **fields: Any) -> httpx.Response:
    """A question answered whole."""
    body = {"messages": QUESTION, "max_tokens": 16, "temperature": 0, **fields}
    return httpx.post(f"{server.url}{CHAT}", json=body, trust_env=False, timeout=120)


def text_of(answer: httpx.Response) -> str:
    """What a whole answer says."""
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def raw_request(path: str, body: Mapping[str, Any]) -> bytes:
    """A request as it goes over the wire."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def connect(server: RunningServer, *, receive_bytes: int | None = None) -> socket.socket:
    """A connection, on request with a small buffer, which is soon full when nobody reads."""
    client = socket.socket()
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.settimeout(120)
    client.connect(("127.0.0.1", server.port))
    return client

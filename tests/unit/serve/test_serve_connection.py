"""A client that goes away ends the work done for it, whole answers and streams alike."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.serve.admission import Admission
from telechat.serve.app import create_app
from telechat.serve.settings import ServeSettings

REQUESTS = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "slow"}]}),
    "chat stream": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "slow"}], "stream": True},
    ),
    "completions": ("/v1/completions", {"prompt": ["slow", "slow"], "n": 2}),
    "completions stream": ("/v1/completions", {"prompt": ["slow", "slow"], "stream": True}),
    "responses": ("/v1/responses", {"input": "slow"}),
    "responses stream": ("/v1/responses", {"input": "slow", "stream": True}),
    "v2": ("/telechat/gptDialog/v2", {"dialog": [{"role": "user", "content": "slow"}]}),
    "v4": ("/telechat/gptDialog/v4", {"dialog": [{"role": "user", "content": "slow"}]}),
}


def scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


async def disconnect_after(seconds: float, body: bytes) -> AsyncIterator[dict[str, Any]]:
    yield {"type": "http.request", "body": body, "more_body": False}
    await asyncio.sleep(seconds)
    yield {"type": "http.disconnect"}


@pytest.mark.parametrize("steps", [(1000.0,), ("first", 1000.0)], ids=["waiting", "answering"])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_disconnect_ends_the_work(name: str, steps: tuple[Any, ...]) -> None:
    engine = FakeEngine()
    engine.scripts["slow"] = steps
    admission = Admission(4)
    app = create_app(engine, ServeSettings(), admission=admission)
    path, body = REQUESTS[name]
    seen_open: list[int] = []

    async def scenario() -> None:
        messages = disconnect_after(0.05, json.dumps(body).encode())

        async def receive() -> dict[str, Any]:
            if admission.num_taken:
                seen_open.append(engine.num_open)
            return await anext(messages)

        async def send(message: dict[str, Any]) -> None:
            pass

        await asyncio.wait_for(app(scope(path), receive, send), timeout=10)

    asyncio.run(scenario())
    assert seen_open
    assert engine.num_open == 0
    assert admission.num_taken == 0

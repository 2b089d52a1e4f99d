"""Requests to an ASGI application without a server between, so that a test decides when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message


class Call:
    """One POST request.

    Attributes:
        messages: what the application has sent.
        begun: set when the status line has been sent.
    """

    def __init__(self, app: ASGIApp, path: str, body: Any, headers: Mapping[str, str] | None = None) -> None:
        self._app = app
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"content-type", b"application/json"),
                (b"host", b"localhost"),
                *((name.lower().encode(), value.encode()) for name, value in (headers or {}).items()),
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        self._body: bytes | None = json.dumps(body).encode()
        self._gone = asyncio.Event()
        self.messages: list[Message] = []
        self.begun = asyncio.Event()

    async def run(self) -> None:
        """Send the request and take the whole answer."""
        await self._app(self._scope, self._receive, self._send)

    def leave(self) -> None:
        """Close the connection, as the application sees it."""
        self._gone.set()

    @property
    def status(self) -> int:
        """Of the answer."""
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def content(self) -> bytes:
        """What has come of the answer's body."""
        return b"".join(message.get("body", b"") for message in self.messages)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.messages.append(message)
        self.begun.set()


async def until(condition: Any, seconds: float = 20) -> None:
    """Wait for `condition()`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)

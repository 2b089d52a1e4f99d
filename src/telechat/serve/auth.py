"""The check of API keys before every request.

It runs before a body is read, and in constant time. It knows which routes anybody may read, because that is a
decision about access; nothing else about routes.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from telechat.serve.errors import ApiError, invalid_key

# Signs of life and documentation tell nothing about users.
OPEN_PATHS = frozenset({"/health", "/ready", "/docs", "/openapi.json"})


class KeyCheck:
    """ASGI middleware that answers 401 unless the request carries one of `keys` or needs none.

    Args:
        app: what to protect.
        keys: printable ASCII; empty lets everybody in.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self._keys = tuple(key.encode("ascii") for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            error = self._refusal(scope)
            if error is not None:
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if not self._keys:
            return None
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, given = header.partition(b" ")
        given = given.strip()
        if scheme.lower() != b"bearer" or not given:
            return invalid_key("No API key was sent. Send it as the header Authorization: Bearer KEY.")
        # All are compared: the time must not tell which one came close.
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        return None if any(matches) else invalid_key("The API key is not one of this service.")

"""The check of API keys before every request, and whose key it is.

It runs before a body is read, and in constant time. It knows which routes anybody may read, because that is a
decision about access; nothing else about routes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from telechat.serve.errors import invalid_key
from telechat.serve.limits import Grant, Limits
from telechat.serve.record import record_of

# Signs of life and documentation tell nothing about users.
OPEN_PATHS = frozenset({"/health", "/ready", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"})


@dataclass(frozen=True)
class Key:
    """One API key.

    Attributes:
        name: whose it is, for logs and for sharing the engine.
        digest: SHA-256 of the key.
        limits: what it may do.
        may_load_adapters: it may change which adapters there are.
    """

    name: str
    digest: bytes
    limits: Limits = field(default_factory=Limits)
    may_load_adapters: bool = False

    @classmethod
    def of(cls, name: str, key: str, limits: Limits | None = None, *, may_load_adapters: bool = False) -> Key:
        """From the key itself: printable ASCII."""
        return cls(name, hashlib.sha256(key.encode("ascii")).digest(), limits or Limits(), may_load_adapters)


class KeyRing:
    """The keys that open a service, and what each has used.

    Args:
        keys: none lets everybody in.
    """

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._entries = [
            (key.digest, Grant(key.name, key.limits, may_load_adapters=key.may_load_adapters)) for key in keys
        ]

    @property
    def is_open(self) -> bool:
        """No key is asked for."""
        return not self._entries

    def find(self, given: bytes) -> Grant | None:
        """The grant of the key that a client sent; None when it is none of ours."""
        digest = hashlib.sha256(given).digest()
        # All are compared: the time must not tell which one came close.
        matches = [grant for known, grant in self._entries if hmac.compare_digest(digest, known)]
        return matches[0] if matches else None


class KeyCheck:
    """ASGI middleware that answers 401 unless the request carries a key or needs none.

    Args:
        app: what to protect.
        ring: the keys.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self.app = app
        self._ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._ring.is_open:
            header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            scheme, _, given = header.partition(b" ")
            given = given.strip()
            has_key = scheme.lower() == b"bearer" and bool(given)
            grant = self._ring.find(given) if has_key else None
            if grant is not None:
                record_of(scope).grant = grant
            elif scope["path"] not in OPEN_PATHS:
                error = invalid_key(
                    "The API key is not one of this service."
                    if has_key
                    else "No API key was sent. Send it as the header Authorization: Bearer KEY."
                )
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

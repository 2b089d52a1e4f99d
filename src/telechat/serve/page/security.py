"""What every response of the page process carries, and which requests it refuses.

The headers allow this origin's own files and nothing else. The `Host` check keeps a hostile site from
reaching a page on loopback by pointing its own name there; the `Origin` check keeps its scripts from posting.
A page that strangers can reach asks for a key, by the browser's own password window (HTTP Basic).
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from telechat.serve.page.proxy import error_response

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Names under which the page answers by default."""
ANY_HOST = "*"
"""In `allowed_hosts`: do not check. For a page behind a proxy that checks."""

OPEN_PATH = "/health"
"""Answers without the key: whoever started the page asks there whether it is up."""

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
        "img-src 'self' data: blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types telechat"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class PageSecurity:
    """ASGI middleware: security headers on every response; `Host`, `Origin` and key checked on requests."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: Sequence[str], access_key: str | None = None) -> None:
        self._app = app
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self._access_key = access_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["path"])
        await (refusal or self._app)(scope, receive, send_secured)

    def _refusal(self, headers: Headers, path: str) -> ASGIApp | None:
        host = headers.get("host", "").lower()
        if ANY_HOST not in self._allowed_hosts and host_name(host) not in self._allowed_hosts:
            message = (
                f"This page does not answer under the name {host_name(host)!r}. Open it under one of: "
                f"{', '.join(sorted(self._allowed_hosts))}."
            )
            return error_response(400, message, "host_not_allowed")
        if _comes_from_elsewhere(headers, host):
            return error_response(403, "This page takes no requests from other sites.", "origin_not_allowed")
        if self._access_key is not None and path != OPEN_PATH:
            given = password_of(headers.get("authorization", ""))
            if not hmac.compare_digest(given.encode(), self._access_key.encode()):
                message = "This page needs the API key: give it as the password, with any user name."
                response = error_response(401, message, "invalid_api_key")
                response.headers["www-authenticate"] = 'Basic realm="telechat", charset="UTF-8"'
                return response
        return None


def password_of(authorization: str) -> str:
    """The password of an `Authorization: Basic …` header; empty when there is none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        pair = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
    return pair.partition(":")[2]


def _comes_from_elsewhere(headers: Headers, host: str) -> bool:
    """Whether a script of another site sent this.

    Only scripts and forms send `Origin`. Where the browser says itself how the two sites relate (https,
    loopback), that counts: behind a proxy `Host` may be another name than the one the user sees.
    """
    origin = headers.get("origin")
    if origin is None:
        return False
    relation = headers.get("sec-fetch-site")
    if relation is not None:
        return relation != "same-origin"
    return origin.lower().partition("://")[2] != host


def host_name(host: str) -> str:
    """The `Host` header without its port; an IPv6 address keeps its brackets."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]

"""The check of origins where no key is asked for: pages of other sites may not use a service on this machine.

Such a service trusts whoever can reach it, and a page of any site can, by the browser of somebody on this
machine: with a form or an image, or under a name of its own that it lets point here. Browsers say where a
page is from and under which name they ask; other programs use this machine's own. Knows no keys.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from telechat.serve.auth import OPEN_PATHS
from telechat.serve.errors import forbidden
from telechat.serve.settings import is_address, is_loopback


class OriginCheck:
    """ASGI middleware that answers 403 to what a page of another site makes a browser send.

    Args:
        app: what to protect.
        allowed: origins that may call all the same, and under whose name one may ask; `*` is all.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self.app = app
        self._allowed = frozenset(allowed)
        self._hosts = frozenset(urlsplit(origin.lower()).hostname for origin in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["path"] not in OPEN_PATHS
            and self._refuses(Headers(scope=scope))
        ):
            error = forbidden(
                "This service takes no requests from pages of other sites or under another site's name. "
                "Its operator may allow an origin with --cors-origin."
            )
            await error.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refuses(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if "*" in self._allowed or origin in self._allowed:
            return False
        if origin is None:
            # An image or a link of another site; browsers send no origin with these.
            is_foreign = headers.get("sec-fetch-site") == "cross-site"
            return is_foreign or self._is_foreign_name(headers.get("host", ""))
        return is_foreign_site(origin)

    def _is_foreign_name(self, host: str) -> bool:
        """Whether a `Host` header is a name that a stranger may have made point here.

        Those have dots: what stands alone is known to this network only, an address belongs to nobody else.
        """
        try:
            name = urlsplit(f"//{host.lower()}").hostname or ""
        except ValueError:
            return True
        if name in self._hosts or name.endswith((".localhost", ".local", ".internal")):
            return False
        return "." in name and not is_address(name)


def is_foreign_site(origin: str) -> bool:
    """Whether an `Origin` header names a web site of another machine; extensions and apps are none."""
    try:
        parts = urlsplit(origin.lower())
        host = parts.hostname or ""
    except ValueError:
        return True
    return origin == "null" or (parts.scheme in ("http", "https") and not is_loopback(host))

"""The page's own files, read once when the app is built.

A fixed table instead of a directory handler: no path can lead elsewhere, and the media types do not depend
on the machine's registry (on Windows `.js` is sometimes text/plain, which `nosniff` then refuses).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

STATIC_FOLDER = Path(__file__).parent / "static"

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """One file as it is sent."""

    content: bytes
    media_type: str
    etag: str

    def respond(self, request: Request) -> Response:
        """The file, or 304 when the browser has it; it must ask each time, so an update shows at once."""
        headers = {"etag": self.etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == self.etag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def asset_routes() -> list[Route]:
    """A route per file: `/` is index.html, the others are under `/static/`."""
    routes = []
    for path in sorted(STATIC_FOLDER.iterdir()):
        if path.suffix not in _MEDIA_TYPES:
            continue
        content = path.read_bytes()
        asset = Asset(content, _MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        routes.append(Route("/" if path.name == "index.html" else f"/static/{path.name}", asset.respond))
    return routes

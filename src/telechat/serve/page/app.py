"""The page process as one ASGI app: its files, the rendering of stored answers, votes, the way to the API.

Holds no conversation and no setting; those live in the browser. The exception is what a user votes on, where
the operator named a folder for it. Does not start a server and does not know where it is bound.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from telechat.serve.page import proxy
from telechat.serve.page.assets import asset_routes
from telechat.serve.page.rendering import render_blocks
from telechat.serve.page.security import LOOPBACK_HOSTS, SECURITY_HEADERS, PageSecurity
from telechat.serve.page.votes import Vote, VoteFolder

logger = logging.getLogger(__name__)

MAX_TEXTS = 200
FEEDBACK_PATH = "/feedback"


def create_page_app(
    api_url: str,
    *,
    api_key: str | None = None,
    access_key: str | None = None,
    allowed_hosts: Sequence[str] = LOOPBACK_HOSTS,
    feedback_folder: Path | None = None,
) -> Starlette:
    """The page for the API at `api_url`.

    Args:
        api_url: where the OpenAI-compatible API is, e.g. `http://127.0.0.1:8070`, without `/v1`.
        api_key: sent to the API as a bearer token; the browser never sees it.
        access_key: what browsers must give as a password, under any user name; None lets everybody in.
        allowed_hosts: host names, without port, under which the page answers; `"*"` switches the check off.
        feedback_folder: where votes on answers are kept as training rows; None shows no thumbs.

    Returns:
        An app to be served by uvicorn. Its routes: `/`, `/static/…`, `/health`, `/about`, `/render`,
        `/feedback` (with a folder), `/v1/models`, `/tokenize`, `/load`, `/v1/chat/completions` (always
        streaming, with rendered blocks beside the text).

    Raises:
        ConfigError: nothing can be written in `feedback_folder`.
    """
    votes = VoteFolder(feedback_folder) if feedback_folder is not None else None

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with proxy.build_client(api_url, api_key) as client:
            app.state.api_client = client
            app.state.votes = votes
            yield

    routes = [
        *asset_routes(),
        Route("/health", _health),
        Route("/about", _about),
        Route("/render", _render_texts, methods=["POST"]),
        Route(proxy.MODELS_PATH, proxy.models),
        Route(proxy.TOKENIZE_PATH, proxy.tokenize, methods=["POST"]),
        Route(proxy.LOAD_PATH, proxy.load),
        Route(proxy.CHAT_PATH, proxy.chat, methods=["POST"]),
    ]
    if votes is not None:
        routes.append(Route(FEEDBACK_PATH, _take_vote, methods=["POST"]))
    return Starlette(
        routes=routes,
        middleware=[Middleware(PageSecurity, allowed_hosts=allowed_hosts, access_key=access_key)],
        exception_handlers={HTTPException: _http_error, 500: _internal_error},
        lifespan=lifespan,
    )


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _about(request: Request) -> Response:
    """What this page offers beyond chatting."""
    return JSONResponse({"feedback": request.app.state.votes is not None})


async def _take_vote(request: Request) -> Response:
    """`{"id", "vote": "up"|"down"|null, "model", "messages", "answer"}`: 200 once it is on the disk."""
    body = await proxy.read_json_object(request)
    if isinstance(body, Response):
        return body
    try:
        vote = Vote.from_json(body)
    except ValueError as error:
        return proxy.error_response(400, str(error), "invalid_vote")
    votes: VoteFolder = request.app.state.votes
    try:
        await asyncio.to_thread(votes.record, vote)
    except OSError as error:
        logger.warning("a vote could not be kept: %s", error)
        message = "The vote could not be kept on the page's machine. Its log says why."
        return proxy.error_response(507, message, "vote_not_kept")
    return JSONResponse({"vote": body["vote"]})


async def _render_texts(request: Request) -> Response:
    """`{"texts": [str, …]}` → `{"blocks": [[html, …], …]}`: stored answers, rendered by today's rules."""
    body = await proxy.read_json_object(request)
    if isinstance(body, Response):
        return body
    texts = body.get("texts")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return proxy.error_response(400, "texts must be a list of strings.", "invalid_texts")
    if len(texts) > MAX_TEXTS:
        message = f"texts has {len(texts)} entries; the limit is {MAX_TEXTS}."
        return proxy.error_response(400, message, "invalid_texts")
    blocks = await asyncio.to_thread(lambda: [render_blocks(text) for text in texts])
    return JSONResponse({"blocks": blocks})


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "http_error")
    return proxy.error_response(status, f"{request.method} {request.url.path} is not served here.", code)


async def _internal_error(request: Request, error: Exception) -> Response:
    # The traceback goes to the log: Starlette raises the error again after this answer. The middleware that
    # adds the headers is inside the one that calls this, so they are added here.
    response = proxy.error_response(500, "The page process failed. Its log says why.", "internal_error")
    response.headers.update(SECURITY_HEADERS)
    return response

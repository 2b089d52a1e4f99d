"""The way from the page to the API: four fixed paths, the key added here, nothing taken from the environment.

`POST /v1/chat/completions` streams an answer with its rendering; `GET /v1/models` says what is served,
`POST /tokenize` the tokens of a prompt, `GET /load` (the API's `/metrics`) how busy it is. The upstream
request is closed as soon as the browser goes away, whether it pressed stop or closed the tab. An API that is
down is a 502 with the usual error body. Knows nothing of Markdown.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import anyio
import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from telechat.serve.page.answer import AnswerBuffer, FrameWriter
from telechat.serve.page.events import EventParser, EventTooLong, format_event

logger = logging.getLogger(__name__)

CHAT_PATH = "/v1/chat/completions"
MODELS_PATH = "/v1/models"
TOKENIZE_PATH = "/tokenize"
LOAD_PATH = "/load"
METRICS_PATH = "/metrics"
MAX_REQUEST_BYTES = 4 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
KEEP_ALIVE_SECONDS = 15.0


def build_client(api_url: str, api_key: str | None) -> httpx.AsyncClient:
    """A client for the one API. No read timeout: a long prompt may take minutes before its first token."""
    return httpx.AsyncClient(
        base_url=api_url,
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx.Timeout(connect=5.0, read=None, write=30.0, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        trust_env=False,
        follow_redirects=False,
    )


def error_response(status: int, message: str, code: str) -> JSONResponse:
    """An error in the API's own shape, so that the page reads one kind only."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}, status_code=status
    )


async def read_json_object(request: Request) -> dict[str, Any] | Response:
    """The body as a JSON object, or the error to answer with.

    Insisting on the JSON media type keeps other sites out: a browser asks permission before sending it
    across origins, and we never grant it.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return error_response(415, "Send the body as application/json.", "unsupported_media_type")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_REQUEST_BYTES:
            message = f"The request is longer than {MAX_REQUEST_BYTES} bytes. Start a new conversation."
            return error_response(413, message, "request_too_large")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return error_response(400, "The body is not valid JSON.", "invalid_json")
    if not isinstance(value, dict):
        return error_response(400, "The body must be a JSON object.", "invalid_json")
    return value


async def models(request: Request) -> Response:
    """`GET /v1/models`, passed through."""
    return await _pass_through(request, "GET", MODELS_PATH)


async def tokenize(request: Request) -> Response:
    """`POST /tokenize`, passed through: the tokens of a conversation, as the API gives them to the model."""
    body = await read_json_object(request)
    if isinstance(body, Response):
        return body
    return await _pass_through(request, "POST", TOKENIZE_PATH, _encoded(body))


async def load(request: Request) -> Response:
    """The API's `GET /metrics`, Prometheus text."""
    return await _pass_through(request, "GET", METRICS_PATH, media_type="text/plain; charset=utf-8")


async def _pass_through(
    request: Request,
    method: str,
    path: str,
    content: bytes | None = None,
    media_type: str = "application/json",
) -> Response:
    client: httpx.AsyncClient = request.app.state.api_client
    headers = {"content-type": "application/json"} if content is not None else {}
    try:
        upstream = await client.request(method, path, content=content, headers=headers, timeout=10.0)
    except httpx.HTTPError as error:
        return _api_down(error)
    if upstream.status_code != 200:
        return _upstream_error(upstream, upstream.content)
    return Response(upstream.content, media_type=media_type)


def _encoded(body: dict[str, Any]) -> bytes:
    """ASCII JSON: a stray half of a surrogate pair then travels as an escape, for the API to judge."""
    return json.dumps(body).encode("ascii")


async def chat(request: Request) -> Response:
    """`POST /v1/chat/completions`; always streams."""
    body = await read_json_object(request)
    if isinstance(body, Response):
        return body
    options = body.get("stream_options")
    include_usage = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return RelayedAnswer(
        request.app.state.api_client, {**body, "stream": True, "stream_options": include_usage}
    )


class RelayedAnswer(Response):
    """Asks the API when it is sent, and gives up the API's request when the browser goes away.

    A response of its own instead of `StreamingResponse`, because the browser may leave before the API has
    answered at all, and because the upstream must be closed at once, not when a generator is collected.
    """

    def __init__(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        super().__init__()
        self._client = client
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def leave_with_browser() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(leave_with_browser)
            await self._relay(scope, receive, send)
            group.cancel_scope.cancel()

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = time.perf_counter()
        try:
            headers = {"content-type": "application/json"}
            request = self._client.build_request(
                "POST", CHAT_PATH, content=_encoded(self._body), headers=headers
            )
            upstream = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            await _api_down(error)(scope, receive, send)
            return
        try:
            if upstream.status_code != 200:
                content = await _read_start(upstream)
                await _upstream_error(upstream, content)(scope, receive, send)
            else:
                await self._stream(upstream, started_at, send)
        finally:
            with anyio.CancelScope(shield=True):
                await upstream.aclose()

    async def _stream(self, upstream: httpx.Response, started_at: float, send: Send) -> None:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        }
        raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw_headers})

        async def send_bytes(data: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        buffer = AnswerBuffer()
        writer = FrameWriter(buffer, started_at)
        async with anyio.create_task_group() as group:
            group.start_soon(_read_upstream, upstream, buffer)
            while not buffer.is_closed or buffer.changed.is_set():
                if not await _wait(buffer.changed, KEEP_ALIVE_SECONDS):
                    await send_bytes(b": keep-alive\n\n")
                    continue
                await send_bytes(format_event(await writer.next_frame()))
                await _wait(buffer.closed, writer.pause_seconds)
        if buffer.error:
            await send_bytes(format_event({"error": buffer.error}))
        # Without the API's own [DONE] there is none from us either: the page then says "cut off".
        await send_bytes(format_event("[DONE]") if buffer.is_done else b"", more=False)


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """Whether `event` was set within `seconds`."""
    with anyio.move_on_after(seconds):
        await event.wait()
    return event.is_set()


async def _read_upstream(upstream: httpx.Response, buffer: AnswerBuffer) -> None:
    parser = EventParser()
    try:
        async for chunk in upstream.aiter_bytes():
            for event in parser.feed(chunk):
                buffer.take_event(event, time.perf_counter())
            if buffer.is_done or buffer.error:
                break
    except (httpx.HTTPError, EventTooLong) as error:
        logger.warning("the API's stream broke off: %s", error)
    finally:
        buffer.close()


async def _read_start(upstream: httpx.Response) -> bytes:
    content = b""
    async for chunk in upstream.aiter_bytes():
        content += chunk
        if len(content) > MAX_ERROR_BYTES:
            break
    return content


def _api_down(error: httpx.HTTPError) -> Response:
    logger.warning("the API does not answer: %s", error)
    message = "The model service does not answer. Check that it is running, then try again."
    return error_response(502, message, "api_unreachable")


def _upstream_error(upstream: httpx.Response, content: bytes) -> Response:
    """The API's error as it is when it has the usual shape, else one that says which status came."""
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        response: Response = JSONResponse(body, status_code=upstream.status_code)
    else:
        message = f"The model service answered with status {upstream.status_code}."
        status = upstream.status_code if upstream.status_code >= 400 else 502
        response = error_response(status, message, "bad_upstream")
    if retry_after := upstream.headers.get("retry-after"):
        response.headers["retry-after"] = retry_after
    return response

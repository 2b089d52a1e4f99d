"""The chat form: a body with `messages`, as MindFormers' chat_web took it.

The original kept the conversation in its worker and read the last message only; here the messages are the
conversation, and nothing is kept. What is wrong with lengths is said inside the envelope, with HTTP 200.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from telechat.engine.outputs import Delta
from telechat.errors import ContextLengthError, TelechatError
from telechat.serve import sse
from telechat.serve.connection import GeneratedResponse, run_while_connected
from telechat.serve.errors import ApiError, as_api_error, internal_error
from telechat.serve.mindie.fields import ChatWebRequest
from telechat.serve.mindie.sampling import from_chat_web
from telechat.serve.service import Service

logger = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 512
_WHOLE, _CHUNK = "chat.completion", "chat.completion.chunk"


def invalid_request() -> Response:
    """400: the last message is not the user's."""
    body = {"detail": "Invalid request", "error": "Invalid request", "error_type": "validation"}
    return JSONResponse(body, status_code=400)


async def answer_chat_web(
    service: Service, request: Request, body: ChatWebRequest, *, stream: bool
) -> Response:
    """The answer to a body with `messages`.

    Raises:
        ApiError, TelechatError: it cannot be answered.
    """
    if body.messages[-1].role != "user":
        return invalid_request()
    try:
        return await _answer(service, request, body, stream=stream)
    except ContextLengthError as error:
        return _failed(str(error), stream=stream)


async def _answer(service: Service, request: Request, body: ChatWebRequest, *, stream: bool) -> Response:
    max_length = body.max_length or min(DEFAULT_MAX_LENGTH, service.model.max_model_len)
    if max_length > service.model.max_model_len:
        return _failed(
            f"max_length is {max_length}; this model accepts {service.model.max_model_len}.", stream=stream
        )
    messages = [
        {"role": "assistant" if message.role == "bot" else message.role, "content": message.content}
        for message in body.messages
    ]
    params = from_chat_web(body, max_length)
    with ExitStack() as stack:
        visit = service.admit(request)
        stack.callback(visit.close)
        ids = await service.encode(messages, limit=max_length)
        deltas = service.deltas(visit.stream(ids, params))
        if stream:
            events = _events(deltas)
            return GeneratedResponse(events, headers=sse.HEADERS, on_close=stack.pop_all().close)
        return await run_while_connected(request, _whole(deltas))


def _envelope(kind: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    return {"object": kind, "choices": [{"index": 0, **choice}], "created": int(time.time())}


def _failure(message: str) -> dict[str, Any]:
    """A choice that says what went wrong, as the original's."""
    return {"message": f"ValueError({message!r})", "finish_reason": "error"}


def _failed(message: str, *, stream: bool) -> Response:
    if not stream:
        return JSONResponse(_envelope(_WHOLE, _failure(message)))
    return Response(sse.event(_envelope(_CHUNK, _failure(message))), headers=dict(sse.HEADERS))


async def _whole(deltas: AsyncGenerator[Delta, None]) -> Response:
    async with aclosing(deltas):
        text = "".join([delta.text async for delta in deltas])
    message = {"role": "assistant", "content": text}
    return JSONResponse(_envelope(_WHOLE, {"message": message, "finish_reason": "stop"}))


async def _events(deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]:
    try:
        yield sse.event(_envelope(_CHUNK, {"delta": {"role": "assistant"}}))
        async with aclosing(deltas):
            async for delta in deltas:
                if delta.text:
                    yield sse.event(_envelope(_CHUNK, {"delta": {"content": delta.text}}))
        yield sse.event(_envelope(_CHUNK, {"delta": {}, "finish_reason": "stop"}))
    except ApiError as error:
        yield sse.event(_envelope(_CHUNK, _failure(error.message)))
    except TelechatError as error:
        yield sse.event(_envelope(_CHUNK, _failure(as_api_error(error).message)))
    except Exception:
        # The boundary of the process: the client must learn that the answer is not complete.
        logger.exception("a stream failed")
        yield sse.event(_envelope(_CHUNK, _failure(internal_error().message)))

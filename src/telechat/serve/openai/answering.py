"""From a request to its HTTP answer, whole or as a stream: the steps that all generating routes take.

Each route brings what it asks of the engine, and a form to write the answer in.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from telechat.errors import TelechatError
from telechat.serve import sse
from telechat.serve.connection import GeneratedResponse, run_while_connected
from telechat.serve.errors import ApiError, as_api_error, internal_error
from telechat.serve.openai.job import Ask, Job, Piece, Usage, start
from telechat.serve.service import Service

logger = logging.getLogger(__name__)


class Form(Protocol):
    """How a route writes an answer. Used for one answer, so it may remember what it has written."""

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        ...

    def opening(self) -> Iterator[bytes]:
        """Events before the first piece."""
        ...

    def events(self, piece: Piece) -> Iterator[bytes]:
        """Events that carry a piece."""
        ...

    def closing(self, usage: Usage) -> Iterator[bytes]:
        """Events after the last piece."""
        ...

    def failure(self, error: ApiError) -> Iterator[bytes]:
        """Events that end a stream which cannot be completed."""
        ...


Prepare = Callable[[], Awaitable[tuple[Ask, Form]]]


async def respond(service: Service, request: Request, prepare: Prepare, *, is_streamed: bool) -> Response:
    """Answer a request whose body has been read.

    Args:
        prepare: makes the prompt and everything else that may be refused before a status line is sent.

    Raises:
        ApiError, TelechatError: the request cannot be answered.
        ClientDisconnect: nobody waits for the answer any more.
    """
    with ExitStack() as stack:
        visit = service.admit(request)
        stack.callback(visit.close)
        async with visit.in_time():
            ask, form = await prepare()
        job = await start(service, visit, ask)
        if is_streamed:
            # The visit is now the response's to close.
            return GeneratedResponse(
                _events(job, form),
                headers=sse.HEADERS,
                on_close=stack.pop_all().close,
                when_idle=sse.KEEP_ALIVE,
            )
        return await run_while_connected(request, _whole(job, form))


async def _whole(job: Job, form: Form) -> Response:
    async with aclosing(job.pieces()) as arriving:
        pieces = [piece async for piece in arriving]
    return JSONResponse(form.whole(pieces, job.usage))


async def _events(job: Job, form: Form) -> AsyncGenerator[bytes, None]:
    """The events of a stream. A failure becomes the last event: the status line has long been sent."""
    error: ApiError
    try:
        for event in form.opening():
            yield event
        async with aclosing(job.pieces()) as pieces:
            async for piece in pieces:
                for event in form.events(piece):
                    yield event
        for event in form.closing(job.usage):
            yield event
        return
    except ApiError as caught:
        error = caught
    except TelechatError as caught:
        error = as_api_error(caught)
    except Exception:
        # The boundary of the process: the client must learn that the answer is not complete.
        logger.exception("a stream failed")
        error = internal_error()
    for event in form.failure(error):
        yield event

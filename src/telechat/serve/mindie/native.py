"""MindIE's own form: `/infer` takes text, `/infer_token` takes ids. Streams tell how long each token took."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from telechat.serve import sse
from telechat.serve.connection import GeneratedResponse, run_while_connected
from telechat.serve.mindie.answering import Answer, Piece, drain, encode_prompt, pieces
from telechat.serve.mindie.events import ending_in_refusal
from telechat.serve.mindie.fields import InferRequest, InferTokenRequest, Parameters
from telechat.serve.mindie.sampling import engine_priority, from_parameters
from telechat.serve.service import Service


async def answer_infer(
    service: Service, request: Request, body: InferRequest | InferTokenRequest
) -> Response:
    """The answer to a body of `/infer` or `/infer_token`.

    Raises:
        ApiError, TelechatError: it cannot be answered.
    """
    given = body.parameters or Parameters.model_validate({})
    params = from_parameters(given, service.settings.mindie)
    with ExitStack() as stack:
        visit = service.admit(request)
        stack.callback(visit.close)
        ids: Sequence[int]
        if isinstance(body, InferTokenRequest):
            ids = body.input_id
        else:
            ids = await encode_prompt(service, body.inputs)
        answer = Answer(ids, params)
        deltas = visit.stream(ids, params, priority=engine_priority(given))
        found = pieces(service, deltas, answer, timeout=given.timeout)
        if body.stream:
            events = ending_in_refusal(_events(found, answer, with_details=bool(given.details)))
            return GeneratedResponse(events, headers=sse.HEADERS, on_close=stack.pop_all().close)
        return await run_while_connected(request, _whole(found, answer, with_details=bool(given.details)))


async def _whole(found: AsyncGenerator[Piece, None], answer: Answer, *, with_details: bool) -> Response:
    await drain(found)
    body: dict[str, Any] = {"generated_text": answer.text}
    if with_details:
        body["details"] = answer.summary()
    return JSONResponse(body)


async def _events(
    found: AsyncGenerator[Piece, None], answer: Answer, *, with_details: bool
) -> AsyncGenerator[bytes, None]:
    is_first = True
    async with aclosing(found):
        async for piece in found:
            took = round(piece.milliseconds, 2)
            body: dict[str, Any] = {
                "prefill_time": took if is_first else None,
                "decode_time": None if is_first else took,
                "token": {"id": piece.token_id, "text": piece.text},
            }
            if piece.finish_reason is not None:
                body["generated_text"] = answer.text
                if with_details:
                    body["details"] = answer.summary()
            yield sse.event(body)
            is_first = False

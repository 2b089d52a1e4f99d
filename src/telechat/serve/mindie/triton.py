"""Triton's form: `/v2/models/{name}/generate[_stream]` takes text, `/infer` a tensor of token ids."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from telechat.serve import sse
from telechat.serve.connection import GeneratedResponse, run_while_connected
from telechat.serve.mindie.answering import Answer, Piece, drain, encode_prompt, pieces
from telechat.serve.mindie.events import ending_in_refusal
from telechat.serve.mindie.fields import TritonInferRequest, TritonParameters, TritonRequest
from telechat.serve.mindie.sampling import engine_priority, from_parameters
from telechat.serve.service import Service


@dataclass(frozen=True)
class Heading:
    """What every answer says of its request: the model's name and version as in the path, the client's id."""

    model_name: str
    model_version: str | None
    id: str | None

    def as_json(self) -> dict[str, Any]:
        """An id that was not given is left out."""
        named = {} if self.id is None else {"id": self.id}
        return {**named, "model_name": self.model_name, "model_version": self.model_version}


async def answer_generate(
    service: Service, request: Request, body: TritonRequest, heading: Heading, *, stream: bool
) -> Response:
    """The answer to a text.

    Raises:
        ApiError, TelechatError: it cannot be answered.
    """
    given = body.parameters or TritonParameters.model_validate({})
    params = from_parameters(given, service.settings.mindie)
    with ExitStack() as stack:
        visit = service.admit(request)
        stack.callback(visit.close)
        ids = await encode_prompt(service, body.text_input)
        answer = Answer(ids, params)
        deltas = visit.stream(ids, params, priority=engine_priority(given))
        found = pieces(service, deltas, answer, timeout=given.timeout)
        if stream:
            events = ending_in_refusal(_events(found, answer, heading, given))
            return GeneratedResponse(events, headers=sse.HEADERS, on_close=stack.pop_all().close)
        return await run_while_connected(request, _whole(found, answer, heading, given))


async def answer_infer_tensor(
    service: Service, request: Request, body: TritonInferRequest, heading: Heading
) -> Response:
    """The answer to a tensor of ids, as a tensor of ids.

    Raises:
        ApiError, TelechatError: it cannot be answered.
    """
    given = body.parameters or TritonParameters.model_validate({})
    params = from_parameters(given, service.settings.mindie)
    tensor = body.inputs[0]
    with ExitStack() as stack:
        visit = service.admit(request)
        stack.callback(visit.close)
        answer = Answer(tensor.data, params)
        deltas = visit.stream(tensor.data, params, priority=engine_priority(given))
        found = pieces(service, deltas, answer, timeout=given.timeout)
        await run_while_connected(request, drain(found))
    output = {
        "name": body.outputs[0].name if body.outputs else "output0",
        "shape": [1, len(answer.token_ids)],
        "datatype": tensor.datatype,
        "data": answer.token_ids,
    }
    return JSONResponse({**heading.as_json(), "outputs": [output]})


async def _whole(
    found: AsyncGenerator[Piece, None], answer: Answer, heading: Heading, given: TritonParameters
) -> Response:
    await drain(found)
    body = {**heading.as_json(), "text_output": answer.text}
    if given.details or given.perf_stat:
        body["details"] = _details(answer, given)
    return JSONResponse(body)


async def _events(
    found: AsyncGenerator[Piece, None], answer: Answer, heading: Heading, given: TritonParameters
) -> AsyncGenerator[bytes, None]:
    async with aclosing(found):
        async for piece in found:
            body = {**heading.as_json(), "text_output": piece.text}
            if given.details or given.perf_stat:
                body["details"] = _details(answer, given)
            yield sse.event(body)


def _details(answer: Answer, given: TritonParameters) -> dict[str, Any]:
    """Times are in milliseconds: until the first token, and the mean of the others."""
    times = [piece.milliseconds for piece in answer.pieces]
    later = times[1:]
    summary = answer.summary()
    return {
        "finish_reason": summary["finish_reason"],
        "generated_tokens": summary["generated_tokens"],
        "first_token_cost": round(times[0], 2) if given.perf_stat and times else None,
        "decode_cost": round(sum(later) / len(later), 2) if given.perf_stat and later else None,
    }

"""TGI's form: a body with `inputs`. The answer is raw text, control tokens included.

Whole or as server-sent events, one per token. Errors are the caller's to shape, except those after a stream
has begun.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from telechat.serve import sse
from telechat.serve.connection import GeneratedResponse, run_while_connected
from telechat.serve.contract import ServiceTokenizer
from telechat.serve.errors import bad_field
from telechat.serve.mindie.answering import Answer, Piece, drain, encode_prompt, pieces
from telechat.serve.mindie.events import ending_in_refusal
from telechat.serve.mindie.fields import TgiParameters, TgiRequest
from telechat.serve.mindie.sampling import engine_priority, from_parameters
from telechat.serve.service import Service


async def answer_tgi(service: Service, request: Request, body: TgiRequest, *, stream: bool) -> Response:
    """The answer to a body with `inputs`.

    Raises:
        ApiError, TelechatError: it cannot be answered.
    """
    given = body.parameters or TgiParameters.model_validate({})
    wants_details = bool(given.details or given.decoder_input_details)
    if stream and given.decoder_input_details:
        raise bad_field("decoder_input_details must be false in streams.", "decoder_input_details")
    settings = service.settings.mindie
    params = from_parameters(given, settings, stop=tuple(given.stop_sequences or ()))
    if wants_details or stream:
        params = params.replace(logprobs=0)
    with ExitStack() as stack:
        visit = service.admit(request)
        stack.callback(visit.close)
        ids = await encode_prompt(service, body.inputs, keep_last=given.truncate)
        answer = Answer(ids, params)
        prefix = body.inputs if given.return_full_text else ""
        stream_of_deltas = visit.stream(ids, params, priority=engine_priority(given))
        found = pieces(service, stream_of_deltas, answer, timeout=given.timeout)
        tokenizer = service.model.tokenizer
        if stream:
            events = ending_in_refusal(_events(found, answer, tokenizer, prefix, with_details=wants_details))
            return GeneratedResponse(events, headers=sse.HEADERS, on_close=stack.pop_all().close)
        return await run_while_connected(request, _whole(found, answer, tokenizer, prefix, given))


async def _whole(
    found: AsyncGenerator[Piece, None],
    answer: Answer,
    tokenizer: ServiceTokenizer,
    prefix: str,
    given: TgiParameters,
) -> Response:
    await drain(found)
    body: dict[str, Any] = {"generated_text": prefix + answer.text}
    if given.details or given.decoder_input_details:
        prefill = (
            [_token(tokenizer, token_id, None, None) for token_id in answer.prompt_ids]
            if given.decoder_input_details
            else []
        )
        body["details"] = {
            **answer.summary(),
            "prompt_tokens": len(answer.prompt_ids),
            "prefill": prefill,
            "tokens": [token_json(piece, tokenizer) for piece in answer.pieces],
        }
    return JSONResponse(body)


async def _events(
    found: AsyncGenerator[Piece, None],
    answer: Answer,
    tokenizer: ServiceTokenizer,
    prefix: str,
    *,
    with_details: bool,
) -> AsyncGenerator[bytes, None]:
    async with aclosing(found):
        async for piece in found:
            is_last = piece.finish_reason is not None
            yield sse.event(
                {
                    "token": token_json(piece, tokenizer),
                    "generated_text": prefix + answer.text if is_last else None,
                    "details": answer.summary() if is_last and with_details else None,
                }
            )


def token_json(piece: Piece, tokenizer: ServiceTokenizer) -> dict[str, Any]:
    """A token as TGI describes it."""
    return _token(tokenizer, piece.token_id, piece.text, piece.logprob)


def _token(
    tokenizer: ServiceTokenizer, token_id: int | None, text: str | None, logprob: float | None
) -> dict[str, Any]:
    if text is None:
        text = tokenizer.decode([] if token_id is None else [token_id])
    return {"id": token_id, "text": text, "logprob": logprob, "special": token_id in tokenizer.control_ids}

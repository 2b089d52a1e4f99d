"""`POST /v1/chat/completions`, whole and as a stream.

Puts the steps together; each step has a module of its own.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from telechat.engine.outputs import Delta
from telechat.errors import TelechatError
from telechat.serve import sse
from telechat.serve.body import read_model
from telechat.serve.connection import GeneratedResponse, run_while_connected
from telechat.serve.contract import DeltaStream
from telechat.serve.errors import ApiError, as_api_error, internal_error
from telechat.serve.openai.answers import Heading, Piece, Usage
from telechat.serve.openai.fields import ChatRequest
from telechat.serve.openai.messages import to_template
from telechat.serve.openai.sampling import to_params
from telechat.serve.openai.tools import ToolGate
from telechat.serve.openapi import json_body
from telechat.serve.service import Service
from telechat.serve.visit import Visit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request under way.

    Attributes:
        stream: the engine's answers.
        num_prompt_tokens: length of the conversation.
        num_choices: number of answers.
        uses_tools: look for tool calls in the answers.
        only_first_call: end an answer after its first call.
        sends_usage: the stream ends with a chunk that counts tokens.
    """

    stream: DeltaStream
    num_prompt_tokens: int
    num_choices: int
    uses_tools: bool
    only_first_call: bool
    sends_usage: bool


def chat_router(service: Service) -> APIRouter:
    """The route that answers conversations."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/v1/chat/completions", summary="Answer a conversation", openapi_extra=json_body(ChatRequest.__name__)
    )
    async def chat_completions(request: Request) -> Response:
        body = await read_model(request, ChatRequest, service.settings.max_body_bytes)
        service.check_model(body.model)
        with ExitStack() as stack:
            visit = service.admit(request)
            stack.callback(visit.close)
            job = await _start(service, visit, body)
            heading = Heading(service.model_name, service.model.tokenizer.decode)
            if body.stream:
                events = _events(service, job, heading)
                # The visit is now the response's to close.
                return GeneratedResponse(events, headers=sse.HEADERS, on_close=stack.pop_all().close)
            return await run_while_connected(request, _whole(service, job, heading))

    return router


async def _start(service: Service, visit: Visit, body: ChatRequest) -> Job:
    """Everything that can be refused is refused here, before a status line is sent."""
    tools = body.offered_tools
    model = service.model
    prompt_ids = await service.encode(to_template(body.messages), tools)
    params = to_params(
        body,
        model.default_params,
        max_choices=service.settings.max_choices,
        vocab_size=model.tokenizer.vocab_size,
    )
    return Job(
        stream=visit.stream(prompt_ids, params),
        num_prompt_tokens=len(prompt_ids),
        num_choices=params.n,
        uses_tools=bool(tools),
        only_first_call=body.parallel_tool_calls is False,
        sends_usage=bool(body.stream_options and body.stream_options.include_usage),
    )


async def _whole(service: Service, job: Job, heading: Heading) -> Response:
    usage = Usage(job.num_prompt_tokens)
    pieces = [piece async for piece in _pieces(service, job, usage)]
    return JSONResponse(heading.completion(pieces, job.num_choices, usage))


async def _events(service: Service, job: Job, heading: Heading) -> AsyncGenerator[bytes, None]:
    """The events of a stream. A failure becomes the last event: the status line has long been sent."""
    usage = Usage(job.num_prompt_tokens)
    # With include_usage every chunk has the key, and only the last one a value.
    extra = {"usage": None} if job.sends_usage else {}
    try:
        for index in range(job.num_choices):
            yield sse.event({**heading.chunk(index, {"role": "assistant", "content": ""}), **extra})
        async with aclosing(_pieces(service, job, usage)) as pieces:
            async for piece in pieces:
                for chunk in heading.chunks(piece):
                    yield sse.event({**chunk, **extra})
        if job.sends_usage:
            yield sse.event(heading.usage_chunk(usage))
        yield sse.DONE
    except ApiError as error:
        yield sse.event(error.body())
    except TelechatError as error:
        yield sse.event(as_api_error(error).body())
    except Exception:
        # The boundary of the process: the client must learn that the answer is not complete.
        logger.exception("a stream failed")
        yield sse.event(internal_error().body())


async def _pieces(service: Service, job: Job, usage: Usage) -> AsyncGenerator[Piece, None]:
    """The answers piece by piece, tool calls taken out; counts tokens into `usage`."""
    gates = (
        [ToolGate(only_first=job.only_first_call) for _ in range(job.num_choices)] if job.uses_tools else []
    )
    open_indices = set(range(job.num_choices))
    async with aclosing(service.deltas(job.stream)) as deltas:
        async for delta in deltas:
            if delta.index not in open_indices:
                continue
            usage.completion_tokens += len(delta.token_ids)
            piece = _through_gate(gates[delta.index], delta) if gates else _as_piece(delta)
            yield piece
            if piece.finish_reason is not None:
                open_indices.remove(delta.index)
                if not open_indices:
                    return


def _as_piece(delta: Delta) -> Piece:
    return Piece(
        index=delta.index, text=delta.text, logprobs=delta.logprobs, finish_reason=delta.finish_reason
    )


def _through_gate(gate: ToolGate, delta: Delta) -> Piece:
    text = gate.push(delta.text)
    finish_reason: str | None = "stop" if gate.is_complete else delta.finish_reason
    if finish_reason is None:
        return Piece(index=delta.index, text=text, logprobs=delta.logprobs)
    rest, calls = gate.finish()
    if calls and finish_reason == "stop":
        finish_reason = "tool_calls"
    return Piece(
        index=delta.index,
        text=text + rest,
        tool_calls=calls,
        logprobs=delta.logprobs,
        finish_reason=finish_reason,
    )

"""`POST /v1/chat/completions`: what the fields of a conversation's request ask of the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from telechat.serve.body import read_model
from telechat.serve.errors import bad_field
from telechat.serve.openai.answering import Form, respond
from telechat.serve.openai.answers import ChatForm
from telechat.serve.openai.chat_fields import ChatRequest
from telechat.serve.openai.fields import Tool
from telechat.serve.openai.job import Ask, blamed_on
from telechat.serve.openai.messages import to_template
from telechat.serve.openai.sampling import check_choices, sampling_changes
from telechat.serve.openai.structured import Structure, from_guided, from_response_format, settle, the_one
from telechat.serve.openai.token_text import TokenText
from telechat.serve.openai.tools import Function, plan_tools
from telechat.serve.openapi import json_body
from telechat.serve.service import Service


def chat_router(service: Service) -> APIRouter:
    """The route that answers conversations."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/v1/chat/completions", summary="Answer a conversation", openapi_extra=json_body(ChatRequest.__name__)
    )
    async def chat_completions(request: Request) -> Response:
        body = await read_model(request, ChatRequest, service.settings.max_body_bytes)
        adapter = service.adapter_of(body.model)

        async def prepare() -> tuple[Ask, Form]:
            ask = replace(await _ask(service, body), adapter=adapter)
            tokens = TokenText(service.model.tokenizer)
            return ask, ChatForm(
                adapter or service.model_name, ask.num_answers, tokens, wants_usage=body.wants_usage
            )

        return await respond(service, request, prepare, is_streamed=bool(body.stream))

    return router


async def _ask(service: Service, body: ChatRequest) -> Ask:
    model = service.model
    n = check_choices(body.n, service.settings.max_choices)
    plan = plan_tools(
        [tool.as_written for tool in body.tools or ()],
        functions_of(body.tools or []),
        body.tool_choice,
        parallel=body.parallel_tool_calls,
    )
    changes = _changes(body, model.tokenizer.vocab_size)
    structured = await settle(model, the_one(_structures(body)), plan)
    params = model.default_params.replace(n=n, structured_outputs=structured, **changes)
    with blamed_on("messages"):
        prompt = await service.encode(to_template(body.messages), plan.offered if plan is not None else None)
    return Ask(prompts=[prompt], params=params, tools=plan)


def _changes(body: ChatRequest, vocab_size: int) -> dict[str, Any]:
    """What the request says of sampling."""
    changes = sampling_changes(body, vocab_size)
    if body.max_answer_tokens is not None:
        changes["max_tokens"] = body.max_answer_tokens
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_field("top_logprobs needs logprobs to be true.", "top_logprobs")
    if body.logprobs:
        changes["logprobs"] = body.top_logprobs or 0
    return changes


def _structures(body: ChatRequest) -> list[Structure]:
    asked = from_response_format(body.response_format, "response_format")
    return ([] if asked is None else [asked]) + from_guided(body)


def functions_of(tools: list[Tool]) -> list[Function]:
    """The functions among `tools`, in their order."""
    return [
        Function(
            name=tool.function.name,
            parameters=tool.function.parameters,
            is_strict=tool.function.strict is True,
            field=f"tools.{position}.function.parameters",
        )
        for position, tool in enumerate(tools)
    ]

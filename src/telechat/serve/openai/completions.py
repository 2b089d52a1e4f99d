"""`POST /v1/completions`: texts continued as they are, without a chat format."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from telechat.serve.body import read_model
from telechat.serve.errors import bad_field
from telechat.serve.openai.answering import Form, respond
from telechat.serve.openai.completion_answers import CompletionForm
from telechat.serve.openai.completion_fields import CompletionRequest
from telechat.serve.openai.job import Ask, blamed_on
from telechat.serve.openai.prompts import MAX_ANSWERS, encode_prompts
from telechat.serve.openai.sampling import check_choices, sampling_changes
from telechat.serve.openai.structured import from_guided, settle, the_one
from telechat.serve.openai.token_text import TokenText
from telechat.serve.openapi import json_body
from telechat.serve.service import Service


def completions_router(service: Service) -> APIRouter:
    """The route that continues texts."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/v1/completions", summary="Continue a text", openapi_extra=json_body(CompletionRequest.__name__)
    )
    async def completions(request: Request) -> Response:
        body = await read_model(request, CompletionRequest, service.settings.max_body_bytes)
        adapter = service.adapter_of(body.model)

        async def prepare() -> tuple[Ask, Form]:
            ask = replace(await _ask(service, body), adapter=adapter)
            return ask, _form(service, body, ask)

        return await respond(service, request, prepare, is_streamed=bool(body.stream))

    return router


async def _ask(service: Service, body: CompletionRequest) -> Ask:
    model = service.model
    changes: dict[str, Any] = sampling_changes(body, model.tokenizer.vocab_size)
    changes["n"] = n = check_choices(body.n, service.settings.max_choices)
    if body.best_of not in (None, n):
        raise bad_field(
            f"best_of is {body.best_of}; it must be the same as n, {n}, or be left out.", "best_of"
        )
    if body.max_tokens is not None:
        # The engine always gives a token; where none was asked for, the form leaves it out.
        changes["max_tokens"] = max(body.max_tokens, 1)
    if body.logprobs is not None:
        changes["logprobs"] = body.logprobs
        if body.echo:
            changes["prompt_logprobs"] = body.logprobs
    structured = await settle(model, the_one(from_guided(body)), None)
    params = model.default_params.replace(structured_outputs=structured, **changes)
    if len(body.prompt) * n > MAX_ANSWERS:
        raise bad_field(
            f"{len(body.prompt)} prompts with n = {n} ask for {len(body.prompt) * n} answers; "
            f"a request may have {MAX_ANSWERS}.",
            "n",
        )
    prompts = await encode_prompts(service, body.prompt, "prompt")
    with blamed_on("prompt"):
        for prompt in prompts:
            service.check_room(prompt)
    return Ask(prompts=prompts, params=params, field="prompt")


def _form(service: Service, body: CompletionRequest, ask: Ask) -> CompletionForm:
    decode = service.model.tokenizer.decode
    echoed = None
    if body.echo:
        prompts = zip(body.prompt, ask.prompts, strict=True)
        texts = [(given if isinstance(given, str) else decode(ids), ids) for given, ids in prompts]
        echoed = [pair for pair in texts for _ in range(ask.params.n)]
    return CompletionForm(
        ask.adapter or service.model_name,
        ask.num_answers,
        TokenText(service.model.tokenizer),
        wants_usage=body.wants_usage,
        echoed=echoed,
        is_echo_only=body.max_tokens == 0,
    )

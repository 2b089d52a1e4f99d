"""`POST /v1/responses`, without memory: what its fields ask of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from telechat.engine.sampling_params import SamplingParams, StructuredOutputs
from telechat.serve.body import read_model
from telechat.serve.errors import bad_field
from telechat.serve.openai.answering import Form, respond
from telechat.serve.openai.job import Ask, blamed_on
from telechat.serve.openai.response_answers import ResponseForm
from telechat.serve.openai.response_fields import FunctionTool, ResponseRequest
from telechat.serve.openai.response_input import to_template
from telechat.serve.openai.sampling import sampling_changes
from telechat.serve.openai.structured import Structure, from_guided, settle, the_one
from telechat.serve.openai.token_text import TokenText
from telechat.serve.openai.tools import Function, ToolPlan, plan_tools
from telechat.serve.openapi import json_body
from telechat.serve.service import Service


def responses_router(service: Service) -> APIRouter:
    """The route of OpenAI's newer interface."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/v1/responses", summary="Answer an input", openapi_extra=json_body(ResponseRequest.__name__)
    )
    async def responses(request: Request) -> Response:
        body = await read_model(request, ResponseRequest, service.settings.max_body_bytes)
        adapter = service.adapter_of(body.model)

        async def prepare() -> tuple[Ask, Form]:
            ask = replace(await _ask(service, body), adapter=adapter)
            return ask, ResponseForm(
                _echoed(adapter or service.model_name, body, ask.params), TokenText(service.model.tokenizer)
            )

        return await respond(service, request, prepare, is_streamed=bool(body.stream))

    return router


async def _ask(service: Service, body: ResponseRequest) -> Ask:
    model = service.model
    plan = _plan(body)
    changes: dict[str, Any] = sampling_changes(body, model.tokenizer.vocab_size)
    if body.max_output_tokens is not None:
        changes["max_tokens"] = body.max_output_tokens
    if body.wants_logprobs:
        changes["logprobs"] = body.top_logprobs or 0
    structured = await settle(model, the_one(_structures(body)), plan)
    params = model.default_params.replace(structured_outputs=structured, **changes)
    with blamed_on("input"):
        prompt = await service.encode(to_template(body), plan.offered if plan is not None else None)
    return Ask(prompts=[prompt], params=params, tools=plan, field="input")


def _plan(body: ResponseRequest) -> ToolPlan | None:
    functions = [
        Function(
            name=tool.name,
            parameters=tool.parameters,
            is_strict=tool.strict is True,
            field=f"tools.{position}.parameters",
        )
        for position, tool in enumerate(body.tools or ())
    ]
    offered = [_as_chat_tool(tool) for tool in body.tools or ()]
    return plan_tools(offered, functions, body.tool_choice, parallel=body.parallel_tool_calls)


def _as_chat_tool(tool: FunctionTool) -> Mapping[str, Any]:
    """As the models were trained to see tools; the fields stay in the client's order."""
    written = tool.as_written
    return {"type": "function", "function": {name: written[name] for name in written if name != "type"}}


def _structures(body: ResponseRequest) -> list[Structure]:
    """What `text.format` and the extensions demand; nothing when any text will do."""
    field = "text.format"
    given = body.text.format if body.text is not None else None
    found = from_guided(body)
    if given is None or given.type == "text":
        return found
    if given.type == "json_object":
        return [Structure(StructuredOutputs(json_object=True), field), *found]
    if given.schema_ is None:
        raise bad_field(f"{field} of type json_schema needs a schema.", field)
    return [Structure(StructuredOutputs(json=given.schema_), field), *found]


def _echoed(model_name: str, body: ResponseRequest, params: SamplingParams) -> dict[str, Any]:
    """Fields of the answer that repeat what was asked for, with the defaults in use."""
    chosen = body.text.format if body.text is not None else None
    shown = {"type": "text"} if chosen is None else chosen.model_dump(by_alias=True, exclude_none=True)
    return {
        "model": model_name,
        "instructions": body.instructions,
        "max_output_tokens": params.max_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": params.temperature,
        "text": {"format": shown},
        "tool_choice": body.tool_choice or "auto",
        "tools": [tool.as_written for tool in body.tools or ()],
        "top_logprobs": params.logprobs or 0,
        "top_p": params.top_p,
        "truncation": "disabled",
        "user": body.user,
    }

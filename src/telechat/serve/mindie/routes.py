"""The MindIE routes that make the model work, and which form of body goes where.

`/generate` takes three forms, told apart by a key of the body. Knows no form from inside.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from telechat.serve.body import checked, read_json
from telechat.serve.errors import ApiError
from telechat.serve.mindie.chat_web import answer_chat_web
from telechat.serve.mindie.fields import (
    ChatWebRequest,
    InferRequest,
    InferTokenRequest,
    TgiRequest,
    TritonInferRequest,
    TritonRequest,
    VllmRequest,
)
from telechat.serve.mindie.metadata import metadata_router
from telechat.serve.mindie.native import answer_infer
from telechat.serve.mindie.refusals import ERROR_SCHEMA, in_tgi_shape
from telechat.serve.mindie.tgi import answer_tgi
from telechat.serve.mindie.triton import Heading, answer_generate, answer_infer_tensor
from telechat.serve.mindie.vllm import answer_vllm
from telechat.serve.openapi import json_body, refused
from telechat.serve.service import Service

# What `install_openapi` is to describe for these routes.
BODIES = (
    TgiRequest,
    VllmRequest,
    ChatWebRequest,
    TritonRequest,
    TritonInferRequest,
    InferRequest,
    InferTokenRequest,
)
GENERATE_SCHEMA: dict[str, Any] = {
    "title": "MindieGenerateRequest",
    "anyOf": [
        {"$ref": f"#/components/schemas/{form.__name__}"}
        for form in (TgiRequest, VllmRequest, ChatWebRequest)
    ],
}
SCHEMAS = {"MindieGenerateRequest": GENERATE_SCHEMA, "MindieError": dict(ERROR_SCHEMA)}

_REFUSED: dict[int | str, dict[str, Any]] = {"4XX": refused("MindieError")}
_TEXT = json_body("MindieGenerateRequest")


def mindie_router(service: Service) -> APIRouter:
    """Routes of text generation."""
    router = APIRouter(tags=["MindIE"], responses=_REFUSED)

    @router.post("/generate", summary="Continue a text (TGI, vLLM or chat form)", openapi_extra=_TEXT)
    async def generate(request: Request) -> Response:
        return await in_tgi_shape(_any_form(service, request, stream=None))

    @router.post("/", summary="Continue a text, as /generate", openapi_extra=_TEXT)
    async def root(request: Request) -> Response:
        return await in_tgi_shape(_any_form(service, request, stream=None))

    @router.post("/generate_stream", summary="Continue a text, always as a stream", openapi_extra=_TEXT)
    async def generate_stream(request: Request) -> Response:
        return await in_tgi_shape(_any_form(service, request, stream=True))

    @router.post("/infer", summary="Continue a text", openapi_extra=json_body(InferRequest.__name__))
    async def infer(request: Request) -> Response:
        async def work() -> Response:
            body = checked(await _read(service, request), InferRequest)
            return await answer_infer(service, request, body)

        return await in_tgi_shape(work())

    @router.post(
        "/infer_token", summary="Continue token ids", openapi_extra=json_body(InferTokenRequest.__name__)
    )
    async def infer_token(request: Request) -> Response:
        async def work() -> Response:
            body = checked(await _read(service, request), InferTokenRequest)
            return await answer_infer(service, request, body)

        return await in_tgi_shape(work())

    return router


def triton_router(service: Service) -> APIRouter:
    """Triton's routes. The model's name is in the path; a version is taken and means nothing."""
    router = APIRouter(tags=["MindIE"], responses=_REFUSED)
    text, tensor = json_body(TritonRequest.__name__), json_body(TritonInferRequest.__name__)

    def add(
        path: str, answer: Callable[[Request, str, str | None], Awaitable[Response]], **described: Any
    ) -> None:
        async def with_version(request: Request, name: str, version: str) -> Response:
            return await in_tgi_shape(answer(request, name, version))

        async def without_version(request: Request, name: str) -> Response:
            return await in_tgi_shape(answer(request, name, None))

        # Names of models may hold a slash, so the longer pattern is tried first.
        for pattern, handler in (("/versions/{version}", with_version), ("", without_version)):
            router.add_api_route(
                f"/v2/models/{{name:path}}{pattern}{path}", handler, methods=["POST"], **described
            )

    async def generate(request: Request, name: str, version: str | None) -> Response:
        return await _triton_text(service, request, name, version, stream=False)

    async def generate_stream(request: Request, name: str, version: str | None) -> Response:
        return await _triton_text(service, request, name, version, stream=True)

    async def infer(request: Request, name: str, version: str | None) -> Response:
        service.check_model(name)
        body = checked(await _read(service, request), TritonInferRequest)
        return await answer_infer_tensor(service, request, body, Heading(name, version, body.id))

    add("/generate", generate, summary="Continue a text (Triton form)", openapi_extra=text)
    add("/generate_stream", generate_stream, summary="Stream of a text (Triton form)", openapi_extra=text)
    add("/infer", infer, summary="Continue a tensor of token ids", openapi_extra=tensor)
    return router


async def _read(service: Service, request: Request) -> Any:
    """A JSON body. Old clients send no content type; `origins` keeps out pages that do the same."""
    return await read_json(request, service.settings.max_body_bytes, needs_type=False)


async def _any_form(service: Service, request: Request, *, stream: bool | None) -> Response:
    value = await _read(service, request)
    keys = value if isinstance(value, dict) else {}
    if "inputs" in keys:
        tgi = checked(value, TgiRequest)
        return await answer_tgi(service, request, tgi, stream=bool(tgi.stream) if stream is None else stream)
    if "prompt" in keys:
        vllm = checked(value, VllmRequest)
        return await answer_vllm(
            service, request, vllm, stream=bool(vllm.stream) if stream is None else stream
        )
    if "messages" in keys:
        chat = checked(value, ChatWebRequest)
        return await answer_chat_web(
            service, request, chat, stream=bool(chat.stream) if stream is None else stream
        )
    raise ApiError(
        422,
        "The body has none of inputs (TGI form), prompt (vLLM form) and messages (chat form).",
        param="inputs",
    )


async def _triton_text(
    service: Service, request: Request, name: str, version: str | None, *, stream: bool
) -> Response:
    service.check_model(name)
    body = checked(await _read(service, request), TritonRequest)
    return await answer_generate(service, request, body, Heading(name, version, body.id), stream=stream)


def mindie_routers(service: Service) -> list[APIRouter]:
    """All MindIE routes."""
    return [mindie_router(service), triton_router(service), metadata_router(service)]

"""`POST /v1/embeddings`: one vector per text, from the model's final hidden states."""

from __future__ import annotations

import asyncio
import base64
import sys
from array import array
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from telechat.serve.body import read_model
from telechat.serve.connection import run_while_connected
from telechat.serve.errors import bad_field
from telechat.serve.openai.fields import ModelField
from telechat.serve.openai.job import blamed_on
from telechat.serve.openai.prompts import Prompts, encode_prompts
from telechat.serve.openapi import json_body
from telechat.serve.service import Service
from telechat.serve.visit import Visit


class EmbeddingRequest(ModelField):
    """Body of `POST /v1/embeddings`."""

    input: Prompts = Field(description="A text, a list of token ids, or a list of either.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="float, or base64 of little-endian fp32."
    )
    dimensions: int | None = Field(None, ge=1, description="Only the model's own number.")
    pooling: Literal["mean", "last"] | None = Field(
        None, description="The mean of all tokens' states (default), or the last one."
    )
    normalize: bool | None = Field(None, description="Vectors of length 1 (default), or as they are.")
    user: str | None = Field(None, description="Accepted and not used.")


def embeddings_router(service: Service) -> APIRouter:
    """The route that embeds texts."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/v1/embeddings", summary="Vectors of texts", openapi_extra=json_body(EmbeddingRequest.__name__)
    )
    async def embeddings(request: Request) -> Response:
        body = await read_model(request, EmbeddingRequest, service.settings.max_body_bytes)
        adapter = service.adapter_of(body.model)
        with closing(service.admit(request)) as visit:
            return JSONResponse(await run_while_connected(request, _answer(service, visit, body, adapter)))

    return router


async def _answer(
    service: Service, visit: Visit, body: EmbeddingRequest, adapter: str | None
) -> dict[str, Any]:
    prompts = await encode_prompts(service, body.input, "input")
    async with visit.in_time():
        vectors = await _embed_all(service, visit, prompts, body, adapter)
    if body.dimensions is not None and body.dimensions != len(vectors[0]):
        raise bad_field(
            f"dimensions is {body.dimensions}; this model's vectors have {len(vectors[0])} numbers.",
            "dimensions",
        )
    num_tokens = sum(len(prompt) for prompt in prompts)
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return {"object": "list", "data": data, "model": adapter or service.model_name, "usage": usage}


async def _embed_all(
    service: Service,
    visit: Visit,
    prompts: Sequence[list[int]],
    body: EmbeddingRequest,
    adapter: str | None,
) -> list[array[float]]:
    """The vectors, computed side by side; one that fails ends the others."""
    normalize = body.normalize is not False
    grant = visit.record.grant
    tenant = grant.name if grant is not None else ""

    async def embed(prompt: list[int]) -> array[float]:
        return await service.engine.embed(
            prompt, body.pooling or "mean", normalize=normalize, tenant=tenant, adapter=adapter
        )

    with blamed_on("input"):
        visit.take_prompts(prompts)
        for _ in prompts:
            visit.note_adapter(adapter)
        tasks = [asyncio.ensure_future(embed(prompt)) for prompt in prompts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _written(vector: array[float], encoding: str | None) -> list[float] | str:
    if encoding != "base64":
        return vector.tolist()
    if sys.byteorder == "big":
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode("ascii")

"""`POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, with vLLM's bodies.

The routes exist only where the operator names a folder for adapters. A path must lie below it, and the key
must be one that may change what is served.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import Field

from telechat.errors import CheckpointError, ConfigError, RequestError
from telechat.serve.body import read_model
from telechat.serve.errors import bad_field, forbidden, model_not_found
from telechat.serve.openai.fields import Strict
from telechat.serve.openapi import json_body
from telechat.serve.record import record_of
from telechat.serve.service import Service


class LoadAdapterRequest(Strict):
    """Body of `POST /v1/load_lora_adapter`."""

    lora_name: str = Field(min_length=1, max_length=200, description="The name that requests give as model.")
    lora_path: str = Field(
        min_length=1, max_length=4096, description="A PEFT folder, below the service's folder for adapters."
    )


class UnloadAdapterRequest(Strict):
    """Body of `POST /v1/unload_lora_adapter`."""

    lora_name: str = Field(min_length=1, max_length=200, description="The adapter's name.")


def adapters_router(service: Service, allowed: Path) -> APIRouter:
    """The routes that change which adapters there are.

    Args:
        allowed: folders of adapters must lie below it.
    """
    router = APIRouter(tags=["Adapters"])
    limit = service.settings.max_body_bytes

    @router.post(
        "/v1/load_lora_adapter",
        summary="Load a LoRA adapter",
        openapi_extra=json_body(LoadAdapterRequest.__name__),
        response_class=PlainTextResponse,
    )
    async def load_lora_adapter(request: Request) -> Response:
        check_may_change(request)
        body = await read_model(request, LoadAdapterRequest, limit)
        if body.lora_name == service.model_name:
            raise bad_field(f"{body.lora_name!r} is the name of the model itself.", "lora_name")
        folder = await asyncio.to_thread(allowed_folder, body.lora_path, allowed)
        with closing(service.admit(request)):
            try:
                await service.engine.load_adapter(body.lora_name, folder)
            except (CheckpointError, ConfigError) as error:
                raise bad_field(str(error).replace(str(folder), body.lora_path), "lora_path") from error
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post(
        "/v1/unload_lora_adapter",
        summary="Unload a LoRA adapter; answers that have begun keep it",
        openapi_extra=json_body(UnloadAdapterRequest.__name__),
        response_class=PlainTextResponse,
    )
    async def unload_lora_adapter(request: Request) -> Response:
        check_may_change(request)
        body = await read_model(request, UnloadAdapterRequest, limit)
        with closing(service.admit(request)):
            try:
                await service.engine.unload_adapter(body.lora_name)
            except RequestError as error:
                raise model_not_found(body.lora_name, service.known_names, param="lora_name") from error
        service.metrics.forget_adapter(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return router


def check_may_change(request: Request) -> None:
    """Refuse a key that may only ask.

    Raises:
        ApiError: 403.
    """
    grant = record_of(request.scope).grant
    if grant is not None and not grant.may_load_adapters:
        raise forbidden("This API key may not load or unload adapters.")


def allowed_folder(path: str, allowed: Path) -> Path:
    """The folder that a client means: below `allowed`, links followed.

    Raises:
        ApiError: 400, it lies elsewhere.
    """
    root = allowed.resolve()
    try:
        folder = (root / path).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise bad_field("lora_path is not a path.", "lora_path") from error
    if not folder.is_relative_to(root):
        raise bad_field("lora_path lies outside this service's folder for adapters.", "lora_path")
    return folder

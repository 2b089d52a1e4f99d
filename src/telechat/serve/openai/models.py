"""`/v1/models`: the one model served, how long its context is and how it samples unless told otherwise."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from telechat.serve.errors import model_not_found
from telechat.serve.openai.sampling import describe
from telechat.serve.service import Service


def models_router(service: Service) -> APIRouter:
    """Routes that list and describe models."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/v1/models", summary="List the models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(service)]}

    # Hub ids hold a slash.
    @router.get("/v1/models/{model_id:path}", summary="Describe one model")
    async def describe_model(model_id: str) -> dict[str, Any]:
        if model_id != service.model_name:
            raise model_not_found(model_id, service.model_name)
        return _card(service)

    return router


def _card(service: Service) -> dict[str, Any]:
    """OpenAI's fields, then ours."""
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "telechat",
        "max_model_len": service.model.max_model_len,
        "default_sampling": describe(service.model.default_params),
    }

"""`/v1/models`: the model and its adapters, their context, and how they sample unless told otherwise."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from telechat.serve.openai.sampling import describe
from telechat.serve.service import Service


def models_router(service: Service) -> APIRouter:
    """Routes that list and describe models."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/v1/models", summary="List the models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(service, name) for name in service.known_names]}

    # Hub ids hold a slash.
    @router.get("/v1/models/{model_id:path}", summary="Describe one model")
    async def describe_model(model_id: str) -> dict[str, Any]:
        service.adapter_of(model_id)
        return _card(service, model_id)

    return router


def _card(service: Service, name: str) -> dict[str, Any]:
    """OpenAI's fields, then ours; of an adapter also vLLM's `parent`, the model that it changes."""
    parent = {} if name == service.model_name else {"parent": service.model_name}
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "telechat",
        **parent,
        "max_model_len": service.model.max_model_len,
        "default_sampling": describe(service.model.default_params),
    }

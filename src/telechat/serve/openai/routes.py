"""All routes of the OpenAI surface, and the bodies that describe themselves in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from pydantic import BaseModel

from telechat.serve.openai.adapters import LoadAdapterRequest, UnloadAdapterRequest, adapters_router
from telechat.serve.openai.chat import chat_router
from telechat.serve.openai.chat_fields import ChatRequest
from telechat.serve.openai.completion_fields import CompletionRequest
from telechat.serve.openai.completions import completions_router
from telechat.serve.openai.embeddings import EmbeddingRequest, embeddings_router
from telechat.serve.openai.models import models_router
from telechat.serve.openai.response_fields import ResponseRequest
from telechat.serve.openai.responses import responses_router
from telechat.serve.openai.tokens import DetokenizeRequest, TokenizeRequest, tokens_router
from telechat.serve.service import Service

BODIES: Sequence[type[BaseModel]] = (
    ChatRequest,
    CompletionRequest,
    ResponseRequest,
    EmbeddingRequest,
    TokenizeRequest,
    DetokenizeRequest,
    LoadAdapterRequest,
    UnloadAdapterRequest,
)


def openai_routers(service: Service) -> Sequence[APIRouter]:
    """One router per route or pair of routes; those that load adapters only where that is allowed."""
    lora_dir = service.settings.lora_dir
    return (
        chat_router(service),
        completions_router(service),
        responses_router(service),
        embeddings_router(service),
        models_router(service),
        tokens_router(service),
        *(() if lora_dir is None else (adapters_router(service, lora_dir),)),
    )

"""`/tokenize` and `/detokenize`: exactly the tokens that the model sees, and back."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from telechat.serve.body import read_model
from telechat.serve.errors import bad_field
from telechat.serve.openai.chat_fields import Message
from telechat.serve.openai.fields import ModelField, Tool
from telechat.serve.openai.job import blamed_on
from telechat.serve.openai.messages import to_template
from telechat.serve.openai.prompts import check_token_ids
from telechat.serve.openai.token_text import TokenText
from telechat.serve.openapi import json_body
from telechat.serve.service import Service


class TokenizeRequest(ModelField):
    """Body of `POST /tokenize`: a text or a conversation."""

    prompt: str | None = Field(None, description="A text as it is; names of control tokens stay text.")
    messages: list[Message] | None = Field(
        None, min_length=1, description="A conversation, as in /v1/chat/completions."
    )
    tools: list[Tool] | None = Field(None, max_length=128, description="Functions offered with it.")
    add_generation_prompt: bool | None = Field(
        None, description="false leaves out the token that lets the model answer a conversation."
    )
    return_token_strs: bool | None = Field(None, description="Give the text of each token as well.")


class DetokenizeRequest(ModelField):
    """Body of `POST /detokenize`."""

    tokens: list[int] = Field(description="Token ids.")


def tokens_router(service: Service) -> APIRouter:
    """The routes between text and tokens. The model itself has nothing to do."""
    router = APIRouter(tags=["Tokens"])
    limit = service.settings.max_body_bytes

    @router.post(
        "/tokenize",
        summary="Token ids of a text or a conversation",
        openapi_extra=json_body(TokenizeRequest.__name__),
    )
    async def tokenize(request: Request) -> dict[str, Any]:
        body = await read_model(request, TokenizeRequest, limit)
        service.adapter_of(body.model)
        ids = await _encode(service, body)
        texts = None
        if body.return_token_strs:
            tokens = TokenText(service.model.tokenizer)
            texts = [tokens.text(token_id) for token_id in ids]
        return {
            "count": len(ids),
            "max_model_len": service.model.max_model_len,
            "tokens": ids,
            "token_strs": texts,
        }

    @router.post(
        "/detokenize", summary="Text of token ids", openapi_extra=json_body(DetokenizeRequest.__name__)
    )
    async def detokenize(request: Request) -> dict[str, str]:
        body = await read_model(request, DetokenizeRequest, limit)
        service.adapter_of(body.model)
        check_token_ids(body.tokens, service.model.tokenizer.vocab_size, "tokens")
        return {"prompt": await asyncio.to_thread(service.model.tokenizer.decode, body.tokens)}

    return router


async def _encode(service: Service, body: TokenizeRequest) -> list[int]:
    tokenizer = service.model.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise bad_field("Give either prompt or messages.", "prompt")
    if body.messages is None:
        assert body.prompt is not None
        with blamed_on("prompt"):
            return await asyncio.to_thread(tokenizer.encode, body.prompt)
    tools = [tool.as_written for tool in body.tools or ()]
    with blamed_on("messages"):
        return await asyncio.to_thread(
            tokenizer.apply_chat_template,
            to_template(body.messages),
            tools or None,
            body.add_generation_prompt is not False,
        )

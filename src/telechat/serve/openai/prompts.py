"""Prompts that are no conversations: a text, token ids, or a list of either.

Names of control tokens in a text stay text, as everywhere; who wants control tokens sends token ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from telechat.serve.errors import bad_field
from telechat.serve.openai.job import blamed_on
from telechat.serve.service import Service

MAX_PROMPTS = 128
# Answers to all prompts of a request together: well below what the engine holds, or it could never take them.
MAX_ANSWERS = 512

Prompt = str | list[int]


def _as_prompts(value: Any) -> list[Prompt]:
    """The four forms become a list of texts or token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a text, a list of token ids, or a list of either, and not empty")
    if all(_is_token_id(item) for item in value):
        return [value]
    for position, item in enumerate(value):
        if isinstance(item, str) or (isinstance(item, list) and all(_is_token_id(one) for one in item)):
            continue
        raise ValueError(f"entry {position} is neither a text nor a list of token ids")
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"has {len(value)} entries; one request may have {MAX_PROMPTS}")
    return value


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_TOKEN_IDS = {"type": "array", "items": {"type": "integer"}}
Prompts = Annotated[
    list[Any],
    BeforeValidator(_as_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                _TOKEN_IDS,
                {"type": "array", "items": _TOKEN_IDS},
            ]
        }
    ),
]


async def encode_prompts(service: Service, prompts: Sequence[Prompt], field: str) -> list[list[int]]:
    """Token ids of each prompt; long ones do not hold up other requests.

    Args:
        field: where the request has them, for errors.

    Raises:
        ApiError: 400, a text that no tokenizer can take, or a token id that the vocabulary does not have.
    """
    tokenizer = service.model.tokenizer
    encoded: list[list[int]] = []
    with blamed_on(field):
        for prompt in prompts:
            if isinstance(prompt, str):
                encoded.append(await asyncio.to_thread(tokenizer.encode, prompt))
            else:
                check_token_ids(prompt, tokenizer.vocab_size, field)
                encoded.append(prompt)
    return encoded


def check_token_ids(token_ids: Sequence[int], vocab_size: int, field: str) -> None:
    """Refuse ids that nothing stands for.

    Raises:
        ApiError: 400.
    """
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            shown = str(token_id) if abs(token_id) < 10**18 else "with very many digits"
            raise bad_field(f"{field} has the token id {shown}; ids are 0 to {vocab_size - 1}.", field)

"""Fitting a conversation into a context: refuse by default, drop whole turns only when asked to.

The length that counts is that of the finished prompt. Nothing is ever cut inside a message, and the caller
learns how much was dropped. Knows nothing about models; the limit is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telechat.errors import ContextLengthError
from telechat.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class FittedConversation:
    """A conversation that fits, its prompt, and how many of the oldest messages had to go."""

    messages: list[Mapping[str, Any]]
    ids: list[int]
    num_dropped_messages: int


def check_prompt_length(ids: Sequence[int], max_prompt_tokens: int) -> None:
    """Refuses a prompt longer than the limit.

    Raises:
        ContextLengthError: with both numbers.
    """
    if len(ids) > max_prompt_tokens:
        raise ContextLengthError(len(ids), max_prompt_tokens)


def drop_oldest_turns(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    max_prompt_tokens: int,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> FittedConversation:
    """Drops the oldest turns until the prompt fits.

    A turn is a user message and everything up to the next one. A system message in front and the last turn
    always stay.

    Raises:
        ContextLengthError: the last turn alone is too long.
        PromptError: as `Tokenizer.apply_chat_template`.
    """
    num_front = 1 if messages and messages[0].get("role") == "system" else 0
    front, turns = list(messages[:num_front]), _turns(messages[num_front:])
    for num_dropped in range(max(1, len(turns))):
        kept = front + [message for turn in turns[num_dropped:] for message in turn]
        ids = tokenizer.apply_chat_template(kept, tools)
        if len(ids) <= max_prompt_tokens:
            return FittedConversation(kept, ids, len(messages) - len(kept))
    raise ContextLengthError(len(ids), max_prompt_tokens)


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    turns: list[list[Mapping[str, Any]]] = []
    for message in messages:
        if message.get("role") == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns

"""What a training row says, whatever form it was written in. Every family of rows reads into one of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages of which the assistant's are learnt.

    Attributes:
        messages: `{"role", "content", "tool_calls"?}`, roles as OpenAI's.
        tools: OpenAI function tools.
        answer_weights: one number per assistant message that scales its loss, 0 for none; None for all 1.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    answer_weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Document:
    """Text of which every token is learnt."""

    text: str


@dataclass(frozen=True)
class TokenRow:
    """A row that is encoded already.

    Attributes:
        ids: token ids.
        learnt: for each, whether it is a target.
        weights: for each, what scales its loss; None for all 1.
    """

    ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Preference:
    """What is thought of answers to one prompt.

    Attributes:
        prompt: the messages before the answer.
        chosen: the better answer, or the only one.
        rejected: the worse one; None for a row about a single answer.
        label: whether the single answer is good; None for a pair.
        tools: OpenAI function tools.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...] | None = None
    label: bool | None = None
    tools: tuple[Mapping[str, Any], ...] = ()


Record = Conversation | Document | TokenRow | Preference

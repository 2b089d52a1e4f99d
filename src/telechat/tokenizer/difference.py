"""Where two tokenizers begin to write the same conversation differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from telechat.errors import PromptError
from telechat.tokenizer.tokenizer import Tokenizer

_SYSTEM = {"role": "system", "content": "你是一个助手。"}
_QUESTION = {"role": "user", "content": "生抽与老抽的区别？"}
_ANSWER = {"role": "assistant", "content": "颜色不同。"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
# (what it shows, messages, tools)
CONVERSATIONS: tuple[tuple[str, list[dict[str, Any]], list[dict[str, Any]]], ...] = (
    ("one question", [_QUESTION], []),
    ("several turns", [_QUESTION, _ANSWER, {"role": "user", "content": "Which is saltier?"}], []),
    ("a system prompt", [_SYSTEM, _QUESTION], []),
    ("a tool", [_QUESTION], [_TOOL]),
)


@dataclass(frozen=True)
class Difference:
    """The first token that differs.

    Attributes:
        conversation: which one.
        position: of the token.
        before: the text up to there.
        first, second: the token and its text on either side; None where the side ends, or cannot write the
            conversation at all (then `position` is 0).
    """

    conversation: str
    position: int
    before: str
    first: tuple[int, str] | None
    second: tuple[int, str] | None


def first_difference(first: Tokenizer, second: Tokenizer) -> Difference | None:
    """The first token at which the two differ, over a few typical conversations; None where they do not."""
    for name, messages, tools in CONVERSATIONS:
        ours, theirs = _ids(first, messages, tools), _ids(second, messages, tools)
        if ours == theirs:
            continue
        ours, theirs = ours or [], theirs or []
        position = next(
            (n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
            min(len(ours), len(theirs)),
        )
        return Difference(
            name,
            position,
            first.decode(ours[:position]),
            _token(first, ours, position),
            _token(second, theirs, position),
        )
    return None


def _ids(
    tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]
) -> list[int] | None:
    try:
        return list(tokenizer.apply_chat_template(list(messages), list(tools)))
    except PromptError:
        return None


def _token(tokenizer: Tokenizer, ids: Sequence[int], position: int) -> tuple[int, str] | None:
    if position >= len(ids):
        return None
    return ids[position], tokenizer.decode([ids[position]])

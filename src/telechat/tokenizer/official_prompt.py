"""The prompt of the official `chat` method (TeleChat1, TeleChat2-115B), with its way of shortening history.

Compatible on purpose, oddities included: each old message is weighed only against the question, never against
what has been kept already, so the result can be longer than the limit; a kept history may begin with an
answer; messages with other roles are dropped without a word. `truncation` holds what we recommend instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from telechat.errors import PromptError
from telechat.tokenizer.tokenizer import Tokenizer

_SMALLEST_LIMIT = 3


def official_chat_prompt(
    tokenizer: Tokenizer,
    question: str,
    history: Sequence[Mapping[str, Any]],
    *,
    seq_length: int,
    max_length: int,
    max_new_tokens: int | None,
    parse_special: bool = False,
) -> list[int]:
    """Token ids that the official `chat` would feed to the model.

    Args:
        tokenizer: of a `telechat1` or `telechat2-115b` model.
        question: the new user message.
        history: `{"role": "user" | "bot" | "assistant", "content": str}`, oldest first.
        seq_length: of the model's config.
        max_length: of the generation config; the limit when `max_new_tokens` is None.
        max_new_tokens: of the generation config.
        parse_special: let control strings in the messages become control tokens, as the original does.

    Raises:
        PromptError: empty question, no room for a prompt, or a model without `chat`.
    """
    name = tokenizer.chat_format.name
    if name == "telechat2":
        raise PromptError(
            "TeleChat2 3B, 7B and 35B have no official chat method.", hint="Use apply_chat_template."
        )
    if not question:
        raise PromptError("The question is empty.", hint="Write a question.")
    special = tokenizer.special
    leads_with_bos = name == "telechat2-115b"
    limit = max_length
    if max_new_tokens is not None:
        limit = max(0, seq_length - max_new_tokens - (1 if leads_with_bos else 0))
    if limit < _SMALLEST_LIMIT:
        raise PromptError(
            f"Only {limit} tokens are left for the prompt; at least {_SMALLEST_LIMIT} are needed.",
            hint="Lower max_new_tokens or raise max_length.",
        )
    question_ids = tokenizer.encode(question, parse_special=parse_special)
    newest = [special.user, *question_ids[-(limit - 1) :], special.bot]
    kept: list[int] = []
    for message in reversed(history):
        ids = _message_ids(tokenizer, message, parse_special)
        if len(ids) + len(newest) >= limit:
            break
        kept = ids + kept
    return ([special.bos] if leads_with_bos else []) + kept + newest


def _message_ids(tokenizer: Tokenizer, message: Mapping[str, Any], parse_special: bool) -> list[int]:
    special = tokenizer.special
    if message["role"] == "user":
        return [special.user, *tokenizer.encode(message["content"], parse_special=parse_special)]
    if message["role"] in ("bot", "assistant"):
        return [special.bot, *tokenizer.encode(message["content"], parse_special=parse_special), special.eos]
    return []

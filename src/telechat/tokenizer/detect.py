"""The one place that decides which chat format a folder uses and which ids `generation_config.json` sets.

Chat format, first rule that applies:
1. `chat_format` in `tokenizer_config.json` (we write it; a user may add it).
2. The vocabulary has no `<_observation>`: TeleChat1 (7B has no `<_system>` either; the 12B has it, unused).
3. `tokenizer_config.json` has a `chat_template` or registers `<_user>`: the TeleChat2 template.
4. `generation_config.json` has `user_token_id` and `bot_token_id`: TeleChat2-115B, whose `chat` reads them.
5. Otherwise the TeleChat2 template (3B, 7B, 35B, MoE).

Ids: the original `chat` of TeleChat1 and 115B takes its ids from `generation_config.json`, so for those
formats the file wins over names. TeleChat2's template goes by name only. `config.json` is never asked: the
7B's is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from telechat.errors import TokenizerError
from telechat.tokenizer.chat_formats import CHAT_FORMATS
from telechat.tokenizer.registered import added_entries

_ID_ROLES = ("bos", "eos", "pad", "user", "bot")


def detect_chat_format(
    tokenizer_config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    name_to_id: Callable[[str], int | None],
) -> str:
    """Name of the chat format, by the rules above.

    Raises:
        TokenizerError: `tokenizer_config.json` names an unknown format.
    """
    named = tokenizer_config.get("chat_format")
    if named is not None:
        if not isinstance(named, str) or named not in CHAT_FORMATS:
            raise TokenizerError(
                f"tokenizer_config.json names the chat format {named!r}.",
                hint=f"Use one of {', '.join(CHAT_FORMATS)}.",
            )
        return named
    if name_to_id("<_observation>") is None:
        return "telechat1"
    added = added_entries(tokenizer_config).values()
    if "chat_template" in tokenizer_config or any(token["content"] == "<_user>" for token in added):
        return "telechat2"
    if "user_token_id" in generation_config and "bot_token_id" in generation_config:
        return "telechat2-115b"
    return "telechat2"


def special_id_overrides(
    generation_config: Mapping[str, Any], chat_format: str, vocab_size: int
) -> dict[str, int]:
    """Role -> id set by `generation_config.json`, for the formats whose official code reads it there.

    Raises:
        TokenizerError: an id outside the vocabulary.
    """
    if chat_format == "telechat2":
        return {}
    found: dict[str, int] = {}
    for role in _ID_ROLES:
        token_id = generation_config.get(f"{role}_token_id")
        if token_id is None or isinstance(token_id, list):
            continue  # a list holds extra stop ids; the token itself goes by name
        if not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise TokenizerError(
                f"generation_config.json says {role}_token_id {token_id!r}; the last id is {vocab_size - 1}.",
                hint="Use the generation_config.json that came with the tokenizer.",
            )
        found[role] = token_id
    return found

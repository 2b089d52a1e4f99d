"""Tokens that the official sentencepiece wrapper registers on top of the model, and how it cuts text at them.

They come from `tokenizer_config.json`. Registered tokens are cut out of the text before sentencepiece sees
it, are written literally when decoded, and (the special ones) are what `skip_special_tokens` removes. Knows
nothing about how the remaining segments are encoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telechat.errors import TokenizerError

_NAMED_KEYS: Mapping[str, str] = {"bos_token": "<_start>", "eos_token": "<_end>", "pad_token": "<_pad>"}
# The template of TeleChat2 is tokenised as one string, so its own tokens must be whole ones.
_TEMPLATE_TOKENS = ("<_user>", "<_bot>", "<_system>")


@dataclass(frozen=True, kw_only=True)
class RegisteredToken:
    """A token cut out of text.

    Attributes:
        content: its literal string.
        token_id: its id.
        is_special: removed by `skip_special_tokens`.
        single_word: recognised only between spaces or at the ends of the text.
        lstrip: swallows white space on its left.
        rstrip: swallows white space on its right.
    """

    content: str
    token_id: int
    is_special: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


def registered_tokens(
    tokenizer_config: Mapping[str, Any], chat_format: str, piece_to_id: Callable[[str], int | None]
) -> tuple[RegisteredToken, ...]:
    """The tokens registered for a sentencepiece folder.

    `added_tokens_decoder` where the config has it; else bos, eos and pad, to which TeleChat2's template adds
    its user, bot and system tokens.

    Raises:
        TokenizerError: a malformed entry.
    """
    found = {
        entry["content"]: _token(entry, token_id)
        for token_id, entry in added_entries(tokenizer_config).items()
    }
    entries: list[Any] = [tokenizer_config.get(key) or default for key, default in _NAMED_KEYS.items()]
    entries += tokenizer_config.get("additional_special_tokens") or []
    if chat_format == "telechat2":
        entries += _TEMPLATE_TOKENS
    for entry in entries:
        settings = {"content": entry} if isinstance(entry, str) else entry
        if not _is_entry(settings):
            raise _malformed(entry)
        token_id = piece_to_id(settings["content"])
        if settings["content"] not in found and token_id is not None:
            found[settings["content"]] = _token(settings, token_id)
    return tuple(found.values())


def added_entries(tokenizer_config: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """`added_tokens_decoder` of a tokenizer config, by id; empty when it has none.

    Raises:
        TokenizerError: a malformed entry.
    """
    added = tokenizer_config.get("added_tokens_decoder") or {}
    if not isinstance(added, Mapping):
        raise _malformed(added)
    for token_id, entry in added.items():
        if not str(token_id).isdigit() or not _is_entry(entry):
            raise _malformed({token_id: entry})
    return {int(token_id): entry for token_id, entry in added.items()}


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("content"), str)


def _malformed(entry: Any) -> TokenizerError:
    return TokenizerError(
        f"tokenizer_config.json has a malformed token {entry!r}.",
        hint="Use the file that came with the model.",
    )


def _token(entry: Mapping[str, Any], token_id: int) -> RegisteredToken:
    return RegisteredToken(
        content=entry["content"],
        token_id=token_id,
        is_special=bool(entry.get("special", True)),
        single_word=bool(entry.get("single_word", False)),
        lstrip=bool(entry.get("lstrip", False)),
        rstrip=bool(entry.get("rstrip", False)),
    )


def split_at_registered(text: str, tokens: Sequence[RegisteredToken]) -> list[RegisteredToken | str]:
    """`text` as registered tokens and the segments between them; empty segments are left out.

    A `single_word` token next to something that is not a space is no token: it joins its left neighbour, or
    else its right one, as ordinary characters. The cut on the other side remains, which matters because every
    segment is encoded separately.
    """
    if not tokens:
        return [text] if text else []
    by_content = {token.content: token for token in tokens}
    longest_first = sorted(by_content, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(re.escape(content) for content in longest_first) + ")")
    segments = [segment for segment in pattern.split(text) if segment]
    for index in range(len(segments)):
        token = by_content.get(segments[index])
        if token is None:
            continue
        left = segments[index - 1] if index > 0 else ""
        right = segments[index + 1] if index + 1 < len(segments) else ""
        if token.rstrip and right:
            segments[index + 1] = right.lstrip()
        if token.lstrip and left:
            segments[index - 1] = left.rstrip()
        if token.single_word and left and left[-1] != " ":
            segments[index - 1] += token.content
            segments[index] = ""
        elif token.single_word and right and right[0] != " ":
            segments[index + 1] = token.content + segments[index + 1]
            segments[index] = ""
    return [by_content.get(segment, segment) for segment in segments if segment]

"""`Tokenizer`: a vocabulary, its control tokens and a chat format under one roof.

This is the face the rest of the toolkit sees. Which files a tokenizer is made from is `load`'s business; how
text is split is the vocabulary's; what a conversation looks like is the chat format's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from telechat.errors import PromptError, TokenizerError
from telechat.tokenizer.chat_formats import ChatFormat, Part
from telechat.tokenizer.messages import check_tools, read_messages
from telechat.tokenizer.special import ROLE_NAMES, TOOL_TAGS, SpecialTokens
from telechat.tokenizer.stream import StreamDecoder

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class Vocabulary(Protocol):
    """Text to ids and back; what `bpe` and `pieces` implement."""

    vocab_size: int
    control_ids: frozenset[int]
    skipped_ids: frozenset[int]
    dropped_space_ids: frozenset[int]

    def token_to_id(self, token: str) -> int | None: ...
    def id_to_token(self, token_id: int) -> str | None: ...
    def token_bytes(self, token_id: int) -> bytes | None: ...
    def encode(self, text: str, *, parse_special: bool) -> list[int]: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool) -> str: ...
    def stream(self, *, skip_special_tokens: bool) -> StreamDecoder: ...


class Tokenizer:
    """Text and conversations to token ids and back.

    Args:
        vocabulary: splits text.
        special: ids of the control tokens.
        chat_format: layout of conversations.
        folder: the files it was read from.

    Attributes:
        vocab_size: highest id + 1.
        control_ids: ids that `encode` never returns for any text (with `parse_special` off).
        dropped_space_ids: ids whose first space decoding drops at the beginning of a text.
    """

    def __init__(
        self, vocabulary: Vocabulary, special: SpecialTokens, chat_format: ChatFormat, *, folder: Path
    ) -> None:
        self.vocabulary = vocabulary
        self.special = special
        self.chat_format = chat_format
        self.folder = folder
        self.vocab_size = vocabulary.vocab_size
        self.control_ids = vocabulary.control_ids | (special.ids() - {special.unk})
        self.dropped_space_ids = vocabulary.dropped_space_ids

    @property
    def supports_system(self) -> bool:
        """Conversations may begin with a system message."""
        return self.chat_format.supports_system

    @property
    def supports_tools(self) -> bool:
        """Conversations may offer and call tools."""
        return self.chat_format.supports_tools

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of `text`; nothing is added before or after.

        Args:
            text: any text.
            parse_special: literal strings such as `<_user>` become control tokens, exactly as in the official
                tokenizer. Never set it for text a user may influence.

        Raises:
            PromptError: the text holds half a surrogate pair.
        """
        return self.vocabulary.encode(_encodable(text), parse_special=parse_special)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts; control strings stay text."""
        return self.vocabulary.encode_batch([_encodable(text) for text in texts])

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of `ids`. Incomplete characters become U+FFFD; tool tags are never skipped.

        Raises:
            TokenizerError: a negative id.
        """
        return self.vocabulary.decode(ids, skip_special_tokens=skip_special_tokens)

    def stream_decoder(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        """A decoder for ids that arrive one by one; its pieces joined equal `decode` of all of them.

        One exception: with `skip_special_tokens=False` the official sentencepiece decode puts a space
        *before* text that a control token follows, which no stream can know in advance; the stream leaves
        that space out.
        """
        return self.vocabulary.stream(skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """Id of a token string, None when the vocabulary has none."""
        return self.vocabulary.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Token string of an id, None for an id outside the vocabulary."""
        return self.vocabulary.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token adds to a text, in the middle of one; None for a token that is no text."""
        return None if token_id in self.control_ids else self.vocabulary.token_bytes(token_id)

    def apply_chat_template(
        self,
        messages: Messages,
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        *,
        official: bool = False,
    ) -> list[int]:
        """Token ids of a conversation.

        Args:
            messages: `{"role", "content", "tool_calls"?}`, OpenAI shape; role `bot` means `assistant`.
            tools: OpenAI function tools.
            add_generation_prompt: end with the token that lets the model answer.
            official: do exactly what the original code does: control strings in the content become control
                tokens, and messages the format cannot express are skipped.

        Raises:
            PromptError: malformed messages, or something this generation cannot express.
        """
        parts = self._render(messages, tools, add_generation_prompt=add_generation_prompt, official=official)
        if official and self.chat_format.official_from_text:
            return self.encode("".join(part.text for part in parts), parse_special=True)
        return [token_id for token_id, _ in self._encode_parts(parts, parse_special=official)]

    def encode_with_loss_mask(
        self, messages: Messages, tools: Tools | None = None
    ) -> tuple[list[int], list[bool]]:
        """A finished conversation for training: ids, and for each whether the assistant writes it.

        Raises:
            PromptError: as `apply_chat_template`.
        """
        parts = self._render(messages, tools, add_generation_prompt=False, official=False)
        pairs = self._encode_parts(parts, parse_special=False)
        return [token_id for token_id, _ in pairs], [is_answer for _, is_answer in pairs]

    def _render(
        self, messages: Messages, tools: Tools | None, *, add_generation_prompt: bool, official: bool
    ) -> list[Part]:
        return self.chat_format.render(
            read_messages(messages),
            check_tools(tools),
            add_generation_prompt=add_generation_prompt,
            official=official,
        )

    def _encode_parts(self, parts: Sequence[Part], *, parse_special: bool) -> list[tuple[int, bool]]:
        """Each stretch of text between control tokens is encoded as one; (id, is_answer) pairs."""
        pairs: list[tuple[int, bool]] = []
        text, is_answer = "", False

        def flush() -> None:
            nonlocal text
            if text:
                pairs.extend(
                    (token_id, is_answer) for token_id in self.encode(text, parse_special=parse_special)
                )
            text = ""

        for part in parts:
            token_id = self._control_id(part) if part.is_control else None
            if token_id is not None:
                flush()
                pairs.append((token_id, part.is_answer))
            elif part.text:
                if part.is_answer != is_answer:
                    flush()
                text, is_answer = text + part.text, part.is_answer
        flush()
        return pairs

    def _control_id(self, part: Part) -> int | None:
        token_id: int | None = getattr(self.special, _ROLE_BY_NAME[part.text])
        if token_id is None and part.text not in TOOL_TAGS:
            raise TokenizerError(
                f"The chat format {self.chat_format.name} needs {part.text}, which {self.folder} lacks.",
                hint="Name the right format with chat_format in tokenizer_config.json.",
            )
        return token_id


_ROLE_BY_NAME = {name: role for role, names in ROLE_NAMES.items() for name in names}


def _encodable(text: str) -> str:
    """Refuses half surrogate pairs (JSON may carry them); no tokenizer can take them."""
    if not isinstance(text, str):
        raise PromptError(f"The text to encode is a {type(text).__name__}; it must be a string.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"Character {error.start} of the text is half a surrogate pair (U+{ord(text[error.start]):04X}).",
            hint="Send well-formed Unicode.",
        ) from error
    return text


def check_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuses a tokenizer with ids the model has no row for. Spare rows in the model are fine.

    Raises:
        TokenizerError: the vocabulary is larger than the model's.
    """
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            f"{tokenizer.folder} has {tokenizer.vocab_size} tokens; the model has rows for {vocab_size}.",
            hint="Use the tokenizer files that came with the model.",
        )

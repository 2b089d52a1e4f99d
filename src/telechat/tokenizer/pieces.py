"""Sentencepiece vocabularies in a `tokenizer.model`, with the official wrapper's behaviour on top.

Serves the TeleChat 12B and TeleChat2. Two ways to encode: ordinary text, in which nothing ever becomes a
control token; and the official way, in which registered tokens and the model's user-defined pieces are
recognised. For text without such strings both give the same ids. A literal U+2581 in the text is a space to
these models. Knows nothing about conversations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from telechat.errors import TokenizerError
from telechat.tokenizer.piece_decoder import SPACE_MARK, PieceRun
from telechat.tokenizer.piece_model import load_processor, with_control_pieces
from telechat.tokenizer.registered import RegisteredToken, split_at_registered
from telechat.tokenizer.special import TOOL_TAGS, is_control_name
from telechat.tokenizer.stream import StreamDecoder

if TYPE_CHECKING:
    import sentencepiece


class PieceVocabulary:
    """A sentencepiece vocabulary.

    Args:
        model: content of `tokenizer.model`.
        processor: the same, loaded.
        registered: tokens on top of it, from `tokenizer_config.json`.
        source: the file, for messages.
        hidden_ids: ids of control tokens besides those known by name, kind or registration.
    """

    def __init__(
        self,
        model: bytes,
        processor: sentencepiece.SentencePieceProcessor,
        *,
        registered: Sequence[RegisteredToken],
        source: Path,
        hidden_ids: Iterable[int] = (),
    ) -> None:
        self._official = processor
        self._registered = tuple(registered)
        self._by_id = {token.token_id: token for token in registered}
        self._by_content = {token.content: token for token in registered}
        num_pieces: int = processor.get_piece_size()
        names: list[str] = processor.id_to_piece(list(range(num_pieces)))
        named = {
            token_id
            for token_id, name in enumerate(names)
            if name.startswith("<")
            and (is_control_name(name) or processor.is_control(token_id))
            and not processor.is_unknown(token_id)
        }
        self.vocab_size = max([num_pieces, *(token_id + 1 for token_id in self._by_id)])
        self.control_ids = frozenset(named | set(self._by_id) | set(hidden_ids))
        self.skipped_ids = frozenset(
            token.token_id for token in registered if token.is_special and token.content not in TOOL_TAGS
        )
        hidden = frozenset(names[token_id] for token_id in self.control_ids if token_id < num_pieces)
        self.dropped_space_ids = frozenset(
            token_id
            for token_id, name in enumerate(names)
            if name.startswith(SPACE_MARK) and token_id not in self.control_ids
        )
        self._plain = load_processor(with_control_pieces(model, hidden), source)

    def token_to_id(self, token: str) -> int | None:
        """Id of a registered token or a piece; None when there is neither."""
        if token in self._by_content:
            return self._by_content[token].token_id
        return piece_to_id(self._official, token)

    def id_to_token(self, token_id: int) -> str | None:
        """Name of a registered token or a piece; None for an id outside the vocabulary."""
        if token_id in self._by_id:
            return self._by_id[token_id].content
        if 0 <= token_id < self._official.get_piece_size():
            return str(self._official.id_to_piece(token_id))
        return None

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for behind other text; None for one that is no text."""
        if token_id in self.control_ids or not 0 <= token_id < self._official.get_piece_size():
            return None
        if self._official.is_control(token_id) or self._official.is_unknown(token_id):
            return None
        piece: str = self._official.id_to_piece(token_id)
        if self._official.is_byte(token_id):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace(SPACE_MARK, " ").encode()

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Ids of `text`; `parse_special` is the official wrapper, quirks included."""
        if not parse_special:
            return list(self._plain.encode(text))
        ids: list[int] = []
        for segment in split_at_registered(text, self._registered):
            if isinstance(segment, RegisteredToken):
                ids.append(segment.token_id)
            else:
                ids.extend(self._official.encode(segment))
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, never parsing special strings."""
        return [list(self._plain.encode(text)) for text in texts]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        """Text of `ids`, equal to the official wrapper's, but tool tags are never skipped."""
        if skip_special_tokens:
            stream = self.stream(skip_special_tokens=True)
            return "".join([stream.push(token_id) for token_id in ids] + [stream.finish()])
        return self._decode_with_official_spaces(ids)

    def stream(self, *, skip_special_tokens: bool) -> StreamDecoder:
        """A decoder that takes ids one by one."""
        skipped = self.skipped_ids if skip_special_tokens else frozenset[int]()
        return _PieceStreamDecoder(PieceRun(self._official), self._by_id, skipped)

    def _decode_with_official_spaces(self, ids: Iterable[int]) -> str:
        """A special token that ends a run puts a space before it, so the run must be known whole."""
        text = ""
        run = PieceRun(self._official)
        run_text, run_is_empty = "", True
        for token_id in ids:
            token = self._by_id.get(token_id)
            if token is None:
                run_text, run_is_empty = run_text + run.push(_checked(token_id)), False
                continue
            ends_run = token.is_special and token.content not in TOOL_TAGS and not run_is_empty
            text += (" " if ends_run else "") + run_text + run.finish() + token.content
            run_text, run_is_empty = "", True
        return text + run_text + run.finish()


class _PieceStreamDecoder:
    """Runs of pieces with registered tokens written literally between them."""

    def __init__(
        self, run: PieceRun, registered: dict[int, RegisteredToken], skipped: frozenset[int]
    ) -> None:
        self._run = run
        self._registered = registered
        self._skipped = skipped

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        if token_id in self._registered:
            return self._run.finish() + self._registered[token_id].content
        return self._run.push(_checked(token_id))

    def finish(self) -> str:
        return self._run.finish()


def piece_to_id(processor: sentencepiece.SentencePieceProcessor, piece: str) -> int | None:
    """Id of a piece by its exact name; None when the model has none (the library would say `unk`)."""
    token_id: int = processor.piece_to_id(piece)
    return token_id if processor.id_to_piece(token_id) == piece else None


def _checked(token_id: int) -> int:
    if token_id < 0:
        raise TokenizerError(f"Token id {token_id} is negative; ids begin at 0.")
    return token_id

"""Decoding sentencepiece ids one by one, with exactly the result of decoding them all at once.

The rules are those of the library's own decoder: the first space of a run is dropped, control pieces are
silent, the unknown piece shows as ` ⁇ `, and byte pieces join into characters, each byte that belongs to none
becoming U+FFFD. Knows nothing about special tokens that a wrapper puts on top; the caller starts a new run
there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from telechat.tokenizer.stream import REPLACEMENT

if TYPE_CHECKING:
    import sentencepiece

SPACE_MARK = "\u2581"
UNKNOWN_SURFACE = " \u2047 "


class PieceRun:
    """One run of pieces: `push` returns text as soon as it is certain, `finish` the rest.

    Args:
        processor: gives names and kinds of pieces.
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        self._processor = processor
        self._num_pieces: int = processor.get_piece_size()
        self._bytes = bytearray()
        self._at_start = True

    def push(self, token_id: int) -> str:
        """Text that `token_id` made certain."""
        if token_id >= self._num_pieces:
            return self._flush_bytes() + self._started(REPLACEMENT)
        if self._processor.is_byte(token_id):
            self._bytes.append(int(self._processor.id_to_piece(token_id)[3:-1], 16))
            return self._complete_characters()
        return self._flush_bytes() + self._surface(token_id)

    def finish(self) -> str:
        """The remaining text; the object then stands at the start of a new run."""
        rest = self._flush_bytes()
        self._at_start = True
        return rest

    def _surface(self, token_id: int) -> str:
        if self._processor.is_control(token_id):
            return ""
        if self._processor.is_unknown(token_id):
            return self._started(UNKNOWN_SURFACE)
        piece: str = self._processor.id_to_piece(token_id)
        if self._at_start and piece.startswith(SPACE_MARK):
            piece = piece[1:]
            self._at_start = False
        return self._started(piece.replace(SPACE_MARK, " "))

    def _started(self, text: str) -> str:
        if text:
            self._at_start = False
        return text

    def _complete_characters(self) -> str:
        """Takes from the pending bytes whatever no further byte can change."""
        text = ""
        while self._bytes:
            length = _character_length(self._bytes)
            if length == 0:
                break
            if length < 0:
                text += REPLACEMENT
                del self._bytes[0]
            else:
                text += self._bytes[:length].decode()
                del self._bytes[:length]
        return self._started(text)

    def _flush_bytes(self) -> str:
        text = ""
        while self._bytes:
            # What is pending begins like a character but will not be completed: its first byte stands alone.
            del self._bytes[0]
            text += REPLACEMENT + self._complete_characters()
        return self._started(text)


def _character_length(pending: bytearray) -> int:
    """Bytes of the UTF-8 character that `pending` begins with; 0 if more are needed, -1 if it begins none."""
    first = pending[0]
    if first < 0x80:
        return 1
    length = 2 if 0xC2 <= first <= 0xDF else 3 if 0xE0 <= first <= 0xEF else 4 if 0xF0 <= first <= 0xF4 else 0
    if length == 0:
        return -1
    # The second byte of these excludes overlong forms, surrogates and values past U+10FFFF.
    low = {0xE0: 0xA0, 0xF0: 0x90}.get(first, 0x80)
    high = {0xED: 0x9F, 0xF4: 0x8F}.get(first, 0xBF)
    for byte in pending[1:length]:
        if not low <= byte <= high:
            return -1
        low, high = 0x80, 0xBF
    return length if len(pending) >= length else 0

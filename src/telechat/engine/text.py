"""From token ids to the text a user may see: whole characters, nothing of a stop string.

Knows nothing of requests or models; the decoder that makes text from ids is handed in.
"""

from __future__ import annotations

from typing import Protocol


class TokenDecoder(Protocol):
    """Incremental decoder of one answer (`Tokenizer.stream_decoder()`)."""

    def push(self, token_id: int) -> str:
        """Text that became certain with this id."""
        ...

    def finish(self) -> str:
        """The rest."""
        ...


class StopScanner:
    """Finds the first stop string in text that arrives in pieces, and holds back what may become one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """(text that may be shown, the stop string found or None). After a find push nothing more."""
        if not self._stop:
            return piece, None
        text = self._held + piece
        found = [(start, -len(stop), stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            start, _, stop = min(found)
            self._held = ""
            return text[:start], stop
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def finish(self) -> str:
        """What was held back and has turned out to be ordinary text."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """Text of one answer, grown token by token."""

    def __init__(self, decoder: TokenDecoder, stop: tuple[str, ...] = ()) -> None:
        self._decoder = decoder
        self._scanner = StopScanner(stop)

    def push(self, token_id: int) -> tuple[str, str | None]:
        """(new text, the stop string that ended the answer or None)."""
        piece = self._decoder.push(token_id)
        return self._scanner.push(piece) if piece else ("", None)

    def finish(self) -> tuple[str, str | None]:
        """The rest of an answer that no stop string ended; its last piece may complete one after all."""
        text, stop = self._scanner.push(self._decoder.finish())
        return (text, stop) if stop is not None else (text + self._scanner.finish(), None)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

"""Decoding token by token without ever showing half a character.

`StreamDecoder` is what everybody above uses; `ByteStreamDecoder` serves byte-level vocabularies, whose text
is simply the concatenation of each token's bytes. Each token is looked at once, so the cost is linear in the
length of the answer. Knows nothing about models, stop strings or how ids were made.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Protocol

REPLACEMENT = "\ufffd"


class StreamDecoder(Protocol):
    """Turns token ids into text as they arrive."""

    def push(self, token_id: int) -> str:
        """Takes one id; returns the text that became certain, possibly empty."""
        ...

    def finish(self) -> str:
        """Ends the stream; an incomplete character comes out as U+FFFD, as it would from `decode`."""
        ...


class ByteStreamDecoder:
    """Stream over a vocabulary in which every token stands for fixed bytes.

    Args:
        token_bytes: bytes of a token id; b"" for one that is to be skipped.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        return self._utf8.decode(b"", True)

"""Single tokens as text, for log-probabilities and for those who want to see tokens.

A token may be a part of a character; its text then has U+FFFD, and its bytes tell the rest.
"""

from __future__ import annotations

from typing import Any

from telechat.engine.outputs import TokenLogprob
from telechat.serve.contract import ServiceTokenizer

# JSON has no infinity; a token that cannot occur gets what other servers give it.
LOWEST_LOGPROB = -9999.0


class TokenText:
    """Text of single tokens of one vocabulary."""

    def __init__(self, tokenizer: ServiceTokenizer) -> None:
        self._tokenizer = tokenizer

    def data(self, token_id: int) -> bytes:
        """What the token adds to a text; of a control token its name."""
        data = self._tokenizer.token_bytes(token_id)
        return data if data is not None else (self._tokenizer.id_to_token(token_id) or "").encode()

    def text(self, token_id: int) -> str:
        """The same as text."""
        return self.data(token_id).decode("utf-8", "replace")

    def entry(self, entry: TokenLogprob) -> dict[str, Any]:
        """A token's log-probability and those of the likeliest, as chat and responses write them."""
        top = [self._one(token_id, logprob) for token_id, logprob in entry.top]
        return {**self._one(entry.token_id, entry.logprob), "top_logprobs": top}

    def _one(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self.data(token_id)
        return {
            "token": data.decode("utf-8", "replace"),
            "logprob": max(logprob, LOWEST_LOGPROB),
            "bytes": list(data),
        }

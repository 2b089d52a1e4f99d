"""Byte-level BPE vocabularies in a `tokenizer.json`, read with the `tokenizers` library.

Serves the TeleChat 7B and everything `telechat tokenizer train` makes. Knows how text becomes ids and back;
knows nothing about conversations. `clean_up_tokenization_spaces` is not applied: decoding gives back the
exact bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telechat.errors import TokenizerError
from telechat.tokenizer.special import TOOL_TAGS, is_control_name
from telechat.tokenizer.stream import REPLACEMENT, ByteStreamDecoder

if TYPE_CHECKING:
    import tokenizers

# Put before the name of a control token in the copy of the vocabulary that encodes ordinary text. It lies
# outside the byte alphabet, so neither merges nor whole-word lookup can arrive at such an entry.
_UNREACHABLE = "\x00"


class BytePairVocabulary:
    """A byte-level BPE vocabulary.

    Args:
        definition: the parsed `tokenizer.json`.
        source: where it came from, for messages.
        hidden_ids: ids of control tokens besides those known by name or marked special.

    Raises:
        TokenizerError: not a byte-level BPE tokenizer.
    """

    def __init__(self, definition: dict[str, Any], *, source: Path, hidden_ids: Iterable[int] = ()) -> None:
        _require_byte_level_bpe(definition, source)
        self._definition = definition
        self._source = source
        self._ids = token_ids(definition)
        self._names = {token_id: name for name, token_id in self._ids.items()}
        self.vocab_size = max(self._ids.values()) + 1
        added = definition.get("added_tokens", [])
        named = {token_id for name, token_id in self._ids.items() if is_control_name(name)}
        special = {token["id"] for token in added if token.get("special")}
        self.control_ids = frozenset(named | special | set(hidden_ids))
        self.skipped_ids = self.control_ids - {self._ids.get(tag) for tag in TOOL_TAGS}
        self.dropped_space_ids = frozenset[int]()
        self._bytes = _byte_table(self._names, {token["content"] for token in added}, self.vocab_size)
        self._plain = _build(_without_control_tokens(definition, self.control_ids), source)
        self._plain.encode_special_tokens = True
        self._parsing: tokenizers.Tokenizer | None = None

    def token_to_id(self, token: str) -> int | None:
        """Id of a token string; None when there is no such token."""
        return self._ids.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Token string of an id, in the byte alphabet; None for an id the vocabulary does not hold."""
        return self._names.get(token_id)

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for; None for a control token or an id without a token."""
        if token_id in self.control_ids or token_id not in self._names:
            return None
        return self._bytes[token_id]

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Ids of `text`; with `parse_special` the literal strings of added tokens become those tokens."""
        encoder = self._special_parser() if parse_special else self._plain
        return list(encoder.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts at once, never parsing special strings."""
        return [list(found.ids) for found in self._plain.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        stream = self.stream(skip_special_tokens=skip_special_tokens)
        return "".join([stream.push(token_id) for token_id in ids] + [stream.finish()])

    def stream(self, *, skip_special_tokens: bool) -> ByteStreamDecoder:
        """A decoder that takes ids one by one."""
        skipped = self.skipped_ids if skip_special_tokens else frozenset[int]()

        def token_bytes(token_id: int) -> bytes:
            return b"" if token_id in skipped else self._token_bytes(token_id)

        return ByteStreamDecoder(token_bytes)

    def _token_bytes(self, token_id: int) -> bytes:
        if 0 <= token_id < self.vocab_size:
            return self._bytes[token_id]
        if token_id < 0:
            raise TokenizerError(f"Token id {token_id} is negative; ids run from 0 to {self.vocab_size - 1}.")
        # Models may have more rows than the vocabulary has tokens; such a sample must show, not crash an
        # answer.
        return REPLACEMENT.encode()

    def _special_parser(self) -> tokenizers.Tokenizer:
        if self._parsing is None:
            self._parsing = _build(self._definition, self._source)
        return self._parsing


def read_definition(path: Path) -> dict[str, Any]:
    """Parses a `tokenizer.json`.

    Raises:
        TokenizerError: the file is damaged or not a tokenizer.
    """
    try:
        definition = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TokenizerError(
            f"{path} is not valid JSON: {error}.", hint="Download the file again; it may be truncated."
        ) from error
    if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
        raise TokenizerError(
            f"{path} has no section 'model'.", hint="Use a tokenizer.json of a TeleChat model."
        )
    added = definition.get("added_tokens", [])
    if not isinstance(added, list) or not all(_is_added_token(token) for token in added):
        raise TokenizerError(f"{path} has malformed added tokens.", hint="Download the file again.")
    return definition


def _is_added_token(token: Any) -> bool:
    return (
        isinstance(token, dict) and isinstance(token.get("content"), str) and isinstance(token.get("id"), int)
    )


def token_ids(definition: dict[str, Any]) -> dict[str, int]:
    """Token string -> id, added tokens included."""
    ids: dict[str, int] = dict(definition["model"].get("vocab") or {})
    ids.update({token["content"]: token["id"] for token in definition.get("added_tokens", [])})
    return ids


def _require_byte_level_bpe(definition: dict[str, Any], source: Path) -> None:
    model = definition["model"]
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict) or not model["vocab"]:
        raise TokenizerError(
            f"{source} holds a {model.get('type')} vocabulary; only byte-level BPE is supported.",
            hint="Use a tokenizer.json of a TeleChat model.",
        )
    decoder = definition.get("decoder") or {}
    steps = decoder.get("decoders", [decoder]) if decoder.get("type") == "Sequence" else [decoder]
    if [step.get("type") for step in steps] != ["ByteLevel"]:
        kinds = ", ".join(str(step.get("type")) for step in steps)
        raise TokenizerError(
            f"{source} has the decoder {kinds}; only ByteLevel is supported.",
            hint="Use a tokenizer.json of a TeleChat model.",
        )


def _build(definition: dict[str, Any], source: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # the library raises bare Exception for every malformed definition
        raise TokenizerError(
            f"{source} cannot be read as a tokenizer: {error}.", hint="Download or train the tokenizer again."
        ) from error


def _without_control_tokens(definition: dict[str, Any], control_ids: frozenset[int]) -> dict[str, Any]:
    """A copy in which no text at all leads to a control token; every id stays where it was."""
    model = definition["model"]
    hidden = {name for name, token_id in token_ids(definition).items() if token_id in control_ids}
    hidden.discard(model.get("unk_token") or "")

    def renamed(name: str) -> str:
        return _UNREACHABLE + name if name in hidden else name

    return {
        **definition,
        "added_tokens": [
            {**token, "content": renamed(token["content"]), "special": token["content"] in hidden}
            for token in definition.get("added_tokens", [])
        ],
        "post_processor": None,
        "model": {
            **model,
            "vocab": {renamed(name): token_id for name, token_id in model["vocab"].items()},
            "merges": [merge for merge in model.get("merges", []) if not _touches(merge, hidden)],
        },
    }


def _touches(merge: str | Sequence[str], hidden: set[str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in hidden or right in hidden or left + right in hidden


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    Bytes that print as Latin-1 characters stand for themselves; the others follow from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + position): byte for position, byte in enumerate(others)})
    return alphabet


def _byte_table(names: dict[int, str], added: set[str], vocab_size: int) -> list[bytes]:
    alphabet = byte_alphabet()
    table = [REPLACEMENT.encode()] * vocab_size
    for token_id, name in names.items():
        literal = name in added or any(char not in alphabet for char in name)
        table[token_id] = name.encode() if literal else bytes(alphabet[char] for char in name)
    return table

"""The tokenizer inside a GGUF file as the files of a model folder.

Pieces with scores become `tokenizer.model`, byte pairs `tokenizer.json`. What the container has no keys for,
files of ours have under keys of their own. Knows no weights.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from telechat.checkpoint.formats.gguf_tokenizer import (
    CONTROL,
    GENERATION_KEY,
    NORMAL,
    SPLIT_RULES,
    TOKENIZER_CONFIG_KEY,
    UNUSED,
    USER_DEFINED,
    USER_DEFINED_KEY,
)
from telechat.checkpoint.mindspore.wire import bytes_field, integer_field, varint
from telechat.errors import TokenizerError

_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
_FIXED32 = 5
# Fields of sentencepiece's messages.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _VOCAB_SIZE, _SPLIT_DIGITS, _WHITE_SPACE_PIECES, _BYTE_FALLBACK = 3, 4, 25, 26, 35
_IDS = {"unknown": 40, "bos": 41, "eos": 42, "padding": 43}
_NAMES = {"unknown": 45, "bos": 46, "eos": 47, "padding": 48}
_RULE_NAME, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 1, 3, 4, 5
_BPE = 2


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Contents of `tokenizer.model` or `tokenizer.json`, and of the two configs, by name.

    Raises:
        TokenizerError: the file has none, or one of a kind that TeleChat does not have.
    """
    kind = _key(metadata, "model")
    if kind == "llama":
        files = {"tokenizer.model": _piece_model(metadata)}
    elif kind == "gpt2":
        files = {"tokenizer.json": _json(_definition(metadata))}
    else:
        raise TokenizerError(f"its tokenizer is of the kind {kind!r}; llama and gpt2 are read")
    own = {"tokenizer_config.json": TOKENIZER_CONFIG_KEY, "generation_config.json": GENERATION_KEY}
    made = {"tokenizer_config.json": _tokenizer_config, "generation_config.json": _generation_config}
    for name, key in own.items():
        files[name] = metadata[key].encode() if key in metadata else _json(made[name](metadata))
    return files


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _key(metadata: Mapping[str, Any], name: str) -> Any:
    if f"tokenizer.ggml.{name}" not in metadata:
        raise TokenizerError(f"it has no tokenizer.ggml.{name}")
    return metadata[f"tokenizer.ggml.{name}"]


def _vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """(texts, types) of all tokens but the unused ones at the end, which only fill up the embedding."""
    texts: list[str] = _key(metadata, "tokens")
    types: list[int] = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(texts)
    count = len(texts)
    while count and types[count - 1] == UNUSED:
        count -= 1
    return texts[:count], types[:count]


def _role_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The ids that the file names, by llama.cpp's words for them."""
    named = {role: metadata.get(f"tokenizer.ggml.{role}_token_id") for role in _ROLES.values()}
    return {role: token_id for role, token_id in named.items() if token_id is not None}


def _definition(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Contents of `tokenizer.json`."""
    rule = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if rule not in SPLIT_RULES:
        raise TokenizerError(
            f"its tokenizer cuts text by the rule {rule!r}; {', '.join(SPLIT_RULES)} are read"
        )
    pattern = SPLIT_RULES[rule]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": bool(metadata.get("tokenizer.ggml.add_space_prefix", False)),
        "trim_offsets": True,
        "use_regex": pattern is None,
    }
    steps: list[dict[str, Any]] = [byte_level]
    if pattern is not None:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        steps = [split, byte_level]
    texts, types = _vocabulary(metadata)
    added = [
        {
            "id": token_id,
            "content": texts[token_id],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for token_id, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: number for number, text in enumerate(texts) if types[number] != UNUSED},
            "merges": [merge.split(" ", 1) for merge in _key(metadata, "merges")],
        },
    }


def _piece_model(metadata: Mapping[str, Any]) -> bytes:
    """A serialised sentencepiece model: the pieces, how they are joined, that text is left as it is."""
    texts, types = _vocabulary(metadata)
    scores: list[float] = _key(metadata, "scores")
    user_defined = set(metadata.get(USER_DEFINED_KEY, ()))
    parts = []
    for token_id, (text, score) in enumerate(zip(texts, scores, strict=False)):
        kind = USER_DEFINED if token_id in user_defined else types[token_id]
        piece = bytes_field(_PIECE, text.encode())
        piece += varint(_SCORE << 3 | _FIXED32) + struct.pack("<f", score) + integer_field(_TYPE, kind)
        parts.append(bytes_field(_PIECES, piece))
    flags = {
        _MODEL_TYPE: _BPE,
        _VOCAB_SIZE: len(texts),
        _SPLIT_DIGITS: 1,
        _WHITE_SPACE_PIECES: 1,
        _BYTE_FALLBACK: 1,
    }
    trainer = b"".join(integer_field(number, value) for number, value in flags.items())
    ids = _role_ids(metadata)
    trainer += b"".join(integer_field(_IDS[role], token_id) for role, token_id in ids.items())
    trainer += b"".join(bytes_field(_NAMES[role], texts[token_id].encode()) for role, token_id in ids.items())
    normalizer = bytes_field(_RULE_NAME, b"identity")
    normalizer += integer_field(_DUMMY_PREFIX, metadata.get("tokenizer.ggml.add_space_prefix", True))
    removes = metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)
    normalizer += integer_field(_REMOVE_SPACES, removes) + integer_field(_ESCAPE_SPACES, 1)
    return b"".join([*parts, bytes_field(_TRAINER, trainer), bytes_field(_NORMALIZER, normalizer)])


def _tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    texts, ids = _key(metadata, "tokens"), _role_ids(metadata)
    config: dict[str, Any] = {name: texts[ids[role]] for name, role in _ROLES.items() if role in ids}
    for name in ("add_bos_token", "add_eos_token"):
        config[name] = bool(metadata.get(f"tokenizer.ggml.{name}", False))
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config


def _generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    ids = _role_ids(metadata)
    return {f"{name}_id": ids[role] for name, role in _ROLES.items() if role in ids and role != "unknown"}

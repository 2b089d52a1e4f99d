"""A tokenizer and its chat template as GGUF metadata, so that llama.cpp splits text as we do.

Reads `tokenizer.model` (sentencepiece) or `tokenizer.json` (byte-level BPE) of a model folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telechat.errors import TokenizerError
from telechat.tokenizer import Tokenizer, load_tokenizer
from telechat.tokenizer.jinja_template import jinja_of
from telechat.tokenizer.piece_model import load_processor, read_facts
from telechat.tokenizer.special import TOOL_TAGS, is_control_name
from telechat.tokenizer.train import QWEN2_SPLIT

NORMAL, _UNKNOWN, CONTROL, USER_DEFINED, UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
# llama.cpp's name for how text is cut before merging -> the pattern; None is the ByteLevel step's own.
SPLIT_RULES = {
    "gpt-2": None,
    "qwen2": QWEN2_SPLIT,
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
}  # fmt: skip
_RULE_OF_PATTERN = {pattern: rule for rule, pattern in SPLIT_RULES.items()}
# What llama.cpp has no keys for, kept for the way back: two files as text, and the ids of tokens that the
# sentencepiece model calls user-defined.
TOKENIZER_CONFIG_KEY = "telechat.tokenizer_config"
GENERATION_KEY = "telechat.generation_config"
USER_DEFINED_KEY = "telechat.user_defined_ids"


def tokenizer_metadata(folder: Path, vocab_size: int) -> dict[str, Any]:
    """The keys `tokenizer.*` of a GGUF file.

    Args:
        vocab_size: rows of the embedding; ids without a token are filled up with unused ones.

    Raises:
        TokenizerError: no tokenizer there, larger than the model, or one that llama.cpp has no equal of.
    """
    tokenizer = load_tokenizer(folder)
    if (folder / "tokenizer.model").is_file():
        metadata = _pieces(folder / "tokenizer.model", tokenizer, vocab_size)
    else:
        metadata = _byte_pairs(folder / "tokenizer.json", tokenizer, vocab_size)
    special = tokenizer.special
    named = {"bos": special.bos, "eos": special.eos, "eot": special.eos, "padding": special.pad}
    if special.unk is not None:
        named["unknown"] = special.unk
    metadata |= {f"tokenizer.ggml.{name}_token_id": token_id for name, token_id in named.items()}
    metadata["tokenizer.ggml.add_bos_token"] = False
    metadata["tokenizer.ggml.add_eos_token"] = False
    metadata["tokenizer.chat_template"] = chat_template(folder, tokenizer)
    for name, key in (("tokenizer_config", TOKENIZER_CONFIG_KEY), ("generation_config", GENERATION_KEY)):
        path = folder / f"{name}.json"
        if path.is_file():
            metadata[key] = path.read_text(encoding="utf-8")
    return metadata


def chat_template(folder: Path, tokenizer: Tokenizer) -> str:
    """The folder's own Jinja template, else that of its chat format."""
    path = folder / "tokenizer_config.json"
    raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    own = raw.get("chat_template")
    return own if isinstance(own, str) else jinja_of(tokenizer.chat_format.name)


def _control_ids(tokenizer: Tokenizer) -> set[int]:
    special = vars(tokenizer.special)
    tags = {tokenizer.token_to_id(tag) for tag in TOOL_TAGS}
    return {token_id for token_id in special.values() if token_id is not None} - tags


def _filled(source: Path, texts: list[str], types: list[int], vocab_size: int) -> None:
    if len(texts) > vocab_size:
        raise TokenizerError(
            f"{source.name} has {len(texts)} tokens; the model's vocabulary has {vocab_size}.",
            hint="Check that the tokenizer belongs to the model.",
        )
    for number in range(len(texts), vocab_size):
        texts.append(f"[unused {number}]")
        types.append(UNUSED)


def _byte_pairs(path: Path, tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw.get("normalizer") is not None:
        kind = raw["normalizer"].get("type")
        raise TokenizerError(
            f"{path.name} changes text before it is cut ({kind}); llama.cpp does not.",
            hint="Write the weights in another format.",
        )
    model, added = raw["model"], raw.get("added_tokens", [])
    by_id = {token_id: text for text, token_id in model["vocab"].items()}
    by_id |= {token["id"]: token["content"] for token in added}
    control = _control_ids(tokenizer) | {token["id"] for token in added if token.get("special")}
    user_defined = {token["id"] for token in added} - control
    texts: list[str] = []
    types: list[int] = []
    for token_id in range(max(by_id) + 1):
        texts.append(by_id.get(token_id, f"[unused {token_id}]"))
        kind = NORMAL if token_id in by_id else UNUSED
        kind = CONTROL if token_id in control else USER_DEFINED if token_id in user_defined else kind
        types.append(kind)
    _filled(path, texts, types, vocab_size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_tokenizer(path, raw.get("pre_tokenizer") or {}),
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }


def _pre_tokenizer(path: Path, raw: Mapping[str, Any]) -> str:
    """llama.cpp's name of the rule by which text is cut.

    Raises:
        TokenizerError: it has none.
    """
    steps = raw.get("pretokenizers", [raw])
    splits = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    byte_level: Mapping[str, Any] = next((step for step in steps if step.get("type") == "ByteLevel"), {})
    pattern = splits[0] if len(splits) == 1 else None if not splits else ""
    if pattern not in _RULE_OF_PATTERN or (not splits and not byte_level.get("use_regex", True)):
        raise TokenizerError(
            f"{path.name} cuts text by a rule that llama.cpp does not have: {pattern or raw.get('type')}.",
            hint="Write the weights in another format.",
        )
    return _RULE_OF_PATTERN[pattern]


def _pieces(path: Path, tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    content = path.read_bytes()
    processor, facts = load_processor(content, path), read_facts(content)
    if not facts.is_bpe:
        raise TokenizerError(f"{path.name} is a unigram model; llama.cpp joins pieces by rank.")
    control = _control_ids(tokenizer)
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    for token_id in range(processor.get_piece_size()):
        texts.append(processor.id_to_piece(token_id))
        scores.append(float(processor.get_score(token_id)))
        if processor.is_unknown(token_id):
            types.append(_UNKNOWN)
        elif token_id in control or processor.is_control(token_id):
            types.append(CONTROL)
        elif processor.is_byte(token_id):
            types.append(_BYTE)
        elif token_id in facts.user_defined_ids:
            # Digits and line ends: before one that begins a text llama.cpp would leave out the space.
            types.append(CONTROL if is_control_name(texts[-1]) else NORMAL)
        else:
            types.append(UNUSED if processor.is_unused(token_id) else NORMAL)
    _filled(path, texts, types, vocab_size)
    scores += [0.0] * (vocab_size - len(scores))
    return {
        USER_DEFINED_KEY: sorted(facts.user_defined_ids),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": facts.adds_dummy_prefix,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
    }

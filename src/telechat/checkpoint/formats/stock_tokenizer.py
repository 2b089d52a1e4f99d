"""A folder's tokenizer for stock transformers, and what is built on it: `tokenizer.json`, a chat template.

The official folders have neither: their sentencepiece model is read by code of their own. Here it becomes
byte pairs with the same result. Control tokens are recognised wherever they stand, since other programs write
a conversation as one text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from telechat.checkpoint.formats.gguf_tokenizer import chat_template
from telechat.errors import TokenizerError
from telechat.tokenizer import Tokenizer, load_tokenizer
from telechat.tokenizer.load import VOCABULARY_FILES
from telechat.tokenizer.piece_model import load_processor, read_facts
from telechat.tokenizer.special import TOOL_TAGS, is_control_name

log = logging.getLogger(__name__)

_CONFIG = "tokenizer_config.json"
_SPACE = "\u2581"
_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad", "unk_token": "unk"}
# Settings of the official class, for which transformers would look for its code.
_DROPPED = ("auto_map", "sp_model_kwargs", "use_fast", "legacy")
_PLAIN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def stock_tokenizer(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Files to put in place of, or beside, those of a model folder; nothing where it has no tokenizer."""
    if not files.keys() & set(VOCABULARY_FILES):
        return {}
    with TemporaryDirectory(prefix="telechat-") as name:
        folder = Path(name)
        for file, content in files.items():
            if "/" not in file:
                (folder / file).write_bytes(content)
        try:
            return _stock_files(folder, files)
        except TokenizerError as error:
            log.warning("The tokenizer is copied as it is: %s", error.message)
            return {}


def _stock_files(folder: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    tokenizer = load_tokenizer(folder)
    raw = json.loads(files.get(_CONFIG, b"{}"))
    raw = {key: value for key, value in raw.items() if key not in _DROPPED}
    raw["tokenizer_class"] = "PreTrainedTokenizerFast"
    raw["chat_template"] = chat_template(folder, tokenizer)
    raw["chat_format"] = tokenizer.chat_format.name  # for our way back: a template alone would mean another
    made: dict[str, bytes] = {}
    if "tokenizer.model" in files:
        definition = piece_definition(folder / "tokenizer.model", tokenizer)
        made["tokenizer.json"] = (json.dumps(definition, ensure_ascii=False) + "\n").encode()
        names = {key: getattr(tokenizer.special, role) for key, role in _ROLES.items()}
        raw |= {key: tokenizer.id_to_token(number) for key, number in names.items() if number is not None}
        if "added_tokens_decoder" in raw:  # officially some are no tokens beside text
            raw["added_tokens_decoder"] = {
                number: {**entry, **_PLAIN} for number, entry in raw["added_tokens_decoder"].items()
            }
    made[_CONFIG] = (json.dumps(raw, indent=2, ensure_ascii=False) + "\n").encode()
    return made


def piece_definition(path: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Contents of a `tokenizer.json` that splits text as a `tokenizer.model` does.

    Raises:
        TokenizerError: its pieces are not joined by rank, or are recognised in a way that has no equal.
    """
    content = path.read_bytes()
    processor, facts = load_processor(content, path), read_facts(content)
    if not facts.is_bpe:
        raise TokenizerError(f"{path.name} is a unigram model, whose pieces are not joined by rank.")
    names: list[str] = processor.id_to_piece(list(range(processor.get_piece_size())))
    for tag, token_id in _tool_tags(tokenizer).items():
        names += [f"[unused {number}]" for number in range(len(names), token_id + 1)]
        names[token_id] = tag
    added = [
        number
        for number, name in enumerate(names)
        if is_control_name(name) or (number < processor.get_piece_size() and processor.is_control(number))
    ]
    runs = [names[number] for number in sorted(facts.user_defined_ids) if number not in added]
    whole = {number for number in range(len(names)) if number in added or number in facts.user_defined_ids}
    whole |= {n for n in range(processor.get_piece_size()) if processor.is_byte(n) or processor.is_unknown(n)}
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if facts.adds_dummy_prefix else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, names[number]) for number in added],
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": processor.id_to_piece(processor.unk_id()),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {name: number for number, name in enumerate(names)},
            "merges": [*_run_merges(path, runs), *_merges(names, whole)],
        },
    }


def _tool_tags(tokenizer: Tokenizer) -> dict[str, int]:
    """Tags that the folder's config has made tokens of."""
    ids = {tag: tokenizer.token_to_id(tag) for tag in TOOL_TAGS}
    return {tag: number for tag, number in ids.items() if number is not None}


def _added(number: int, name: str) -> dict[str, Any]:
    return {"id": number, "content": name, **_PLAIN, "special": name not in TOOL_TAGS}


def _merges(names: Sequence[str], whole: set[int]) -> list[list[str]]:
    """Every way to make a piece of two, by the rank of the result, which is its place in the model.

    Args:
        whole: ids that are never parts and never made.
    """
    usable = {name: number for number, name in enumerate(names) if number not in whole}
    merges = []
    for name in usable:
        cuts = [(name[:at], name[at:]) for at in range(1, len(name))]
        found = [pair for pair in cuts if pair[0] in usable and pair[1] in usable]
        merges += sorted(found, key=lambda pair: (usable[pair[0]], usable[pair[1]]))
    return [list(pair) for pair in merges]


def _run_merges(path: Path, pieces: Sequence[str]) -> list[list[str]]:
    """Merges that cut a run of one character as a longest match from the left does.

    Pieces that are recognised before anything is merged can be expressed so if they are such runs.
    """
    merges: dict[int, list[list[str]]] = {}
    for piece in (piece for piece in pieces if len(piece) > 1):
        half = 1 << (len(piece) - 1).bit_length() - 1
        if len(set(piece)) > 1 or piece[:half] not in pieces or piece[half:] not in pieces:
            raise TokenizerError(f"{path.name} recognises {piece!r} as a whole, which has no equal.")
        # Doublings first, then longer runs before shorter ones.
        rank = len(piece) if 2 * half == len(piece) else 1000 - len(piece)
        merges.setdefault(rank, []).append([piece[:half], piece[half:]])
    return [pair for rank in sorted(merges) for pair in merges[rank]]

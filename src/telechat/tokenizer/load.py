"""Making a `Tokenizer` from the files of a model folder.

Reads `tokenizer.model` (sentencepiece; wins when both are there, as in the official loader) or
`tokenizer.json`, with `tokenizer_config.json` and `generation_config.json` where present. No file is
executed: a `tokenization_*.py` in the folder is ignored. Hub ids and the name `demo` are resolved by the
caller.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from telechat.errors import TokenizerError
from telechat.tokenizer.bpe import BytePairVocabulary, read_definition, token_ids
from telechat.tokenizer.chat_formats import chat_format_by_name
from telechat.tokenizer.detect import detect_chat_format, special_id_overrides
from telechat.tokenizer.piece_model import load_processor
from telechat.tokenizer.pieces import PieceVocabulary, piece_to_id
from telechat.tokenizer.registered import registered_tokens
from telechat.tokenizer.special import SpecialTokens
from telechat.tokenizer.tokenizer import Tokenizer

# One of these suffices; the first is taken where there are both.
VOCABULARY_FILES = ("tokenizer.model", "tokenizer.json")
TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer_config.json")
# In a folder of the cache that stands for a checkpoint elsewhere (`checkpoint.weights.NOTE`).
_NOTE = "telechat-source.json"


def load_tokenizer(path_or_name: str | Path, *, chat_format: str | None = None) -> Tokenizer:
    """Loads the tokenizer of a model folder.

    Args:
        path_or_name: a folder with `tokenizer.model` or `tokenizer.json`.
        chat_format: `telechat1`, `telechat2-115b` or `telechat2`; None finds it as `detect` describes.

    Raises:
        TokenizerError: the folder or its tokenizer files are missing or damaged.
        ConfigError: unknown `chat_format`.
    """
    folder = Path(path_or_name)
    if not folder.is_dir():
        raise TokenizerError(
            f"There is no folder {folder}.",
            hint="Give a folder that holds tokenizer.model or tokenizer.json.",
        )
    tokenizer_config = _read_object(folder / "tokenizer_config.json")
    generation_config = _read_object(folder / "generation_config.json")
    if (folder / "tokenizer.model").is_file():
        return _load_pieces(folder, tokenizer_config, generation_config, chat_format)
    if (folder / "tokenizer.json").is_file():
        return _load_byte_pairs(folder, tokenizer_config, generation_config, chat_format)
    raise _no_tokenizer(folder)


def _no_tokenizer(folder: Path) -> TokenizerError:
    """The refusal of a folder; of one that stands for a checkpoint elsewhere, it names that."""
    source = _read_object(folder / _NOTE).get("weights")
    if source is not None:
        return TokenizerError(
            f"{source} comes without a tokenizer: beside it is neither tokenizer.model nor tokenizer.json.",
            hint="Copy the model's tokenizer files there; chat, generate and serve also take --tokenizer.",
        )
    return TokenizerError(
        f"{folder} holds neither tokenizer.model nor tokenizer.json.",
        hint="Copy the tokenizer files of the model into the folder.",
    )


def _load_byte_pairs(
    folder: Path, tokenizer_config: dict[str, Any], generation_config: dict[str, Any], chat_format: str | None
) -> Tokenizer:
    path = folder / "tokenizer.json"
    definition = read_definition(path)
    ids = token_ids(definition)
    name = chat_format or detect_chat_format(tokenizer_config, generation_config, ids.get)
    layout = chat_format_by_name(name)
    overrides = special_id_overrides(generation_config, name, max(ids.values(), default=0) + 1)
    vocabulary = BytePairVocabulary(definition, source=path, hidden_ids=overrides.values())
    special = SpecialTokens.from_vocabulary(vocabulary.token_to_id, overrides)
    return Tokenizer(vocabulary, special, layout, folder=folder)


def _load_pieces(
    folder: Path, tokenizer_config: dict[str, Any], generation_config: dict[str, Any], chat_format: str | None
) -> Tokenizer:
    path = folder / "tokenizer.model"
    model = path.read_bytes()
    processor = load_processor(model, path)

    def name_to_id(name: str) -> int | None:
        return piece_to_id(processor, name)

    name = chat_format or detect_chat_format(tokenizer_config, generation_config, name_to_id)
    layout = chat_format_by_name(name)
    registered = registered_tokens(tokenizer_config, name, name_to_id)
    overrides = special_id_overrides(generation_config, name, processor.get_piece_size())
    vocabulary = PieceVocabulary(
        model, processor, registered=registered, source=path, hidden_ids=overrides.values()
    )
    special = SpecialTokens.from_vocabulary(vocabulary.token_to_id, overrides)
    return Tokenizer(vocabulary, special, layout, folder=folder)


def copy_tokenizer_files(tokenizer: Tokenizer, folder: Path) -> list[Path]:
    """Copies the files the tokenizer was read from into `folder`, unchanged; returns the copies."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [tokenizer.folder / name for name in TOKENIZER_FILES]
    return [Path(shutil.copyfile(source, folder / source.name)) for source in sources if source.is_file()]


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TokenizerError(
            f"{path} is not valid JSON: {error}.", hint="Download the file again."
        ) from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds no JSON object.", hint="Download the file again.")
    return value

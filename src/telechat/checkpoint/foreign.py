"""Is a path a checkpoint in a format other than the official one? Answered from names alone, without torch.

Opening it is the business of `formats`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from telechat.checkpoint.folder import CONFIG, LAYOUTS, SAFETENSORS, TRAINING_STATE
from telechat.checkpoint.headers import read_header
from telechat.errors import CheckpointError

_FILES = (".ckpt", ".gguf", ".safetensors", ".bin", ".pt", ".pth")
_RANK = re.compile(r"rank_\d+")
_MINDSPORE_NAME = "model.tok_embeddings.embedding_weight"


def is_foreign(path: Path) -> bool:
    """Whether a file or folder holds a model that is not in an official folder."""
    if path.is_file():
        return path.suffix in _FILES
    if not path.is_dir():
        return False
    if any((path / name).is_file() for name in LAYOUTS):
        return _is_llama(path / CONFIG) or _has_mindspore_names(path / SAFETENSORS)
    children = list(path.iterdir())
    below = [child for child in children if child.is_dir()]
    return (
        (path / TRAINING_STATE).is_file()
        or any(child.suffix in (".ckpt", ".gguf") and child.is_file() for child in children)
        or any(_RANK.fullmatch(child.name) for child in below)
        or any((child / "rank_0").is_dir() for child in below)
    )


def _is_llama(config: Path) -> bool:
    try:
        raw = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and raw.get("model_type") == "llama"


def _has_mindspore_names(path: Path) -> bool:
    try:
        return path.is_file() and _MINDSPORE_NAME in read_header(path)
    except CheckpointError:
        return False

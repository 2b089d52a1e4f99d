"""Checkpoints of any format used as models, without converting them.

A reference is a small folder in the cache that looks like a model's: config.json, tokenizer, generation
settings, and a note of where the weights are and what they are. Whoever opens its weights reads the
original, tensor by tensor, under our names; slices of many ranks are joined on the way.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from telechat.checkpoint.folder import CONFIG, GENERATION_CONFIG, WeightFiles, read_json
from telechat.checkpoint.formats.hf import companions, json_bytes
from telechat.checkpoint.formats.lazy import LazyTensor
from telechat.checkpoint.formats.opening import open_checkpoint, open_model_folder
from telechat.checkpoint.hub import cache_folder
from telechat.checkpoint.save import folder_config
from telechat.checkpoint.weights import NOTE, StoredTensor, StoredWeights
from telechat.errors import CheckpointError
from telechat.ops.pages import empty_pages
from telechat.tokenizer.load import TOKENIZER_FILES, VOCABULARY_FILES

log = logging.getLogger(__name__)

_TOKENIZER_HINT = "Name a tokenizer.model, a tokenizer.json, or a folder with one."


def reference_folder(
    source: Path,
    *,
    config: Path | None = None,
    strategy: Path | None = None,
    tokenizer: Path | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Path:
    """A folder that stands for a checkpoint of any format.

    Args:
        config, strategy: as in `open_checkpoint`.
        tokenizer: a tokenizer file, or a folder with one; by default what lies beside the weights.
        generation: settings over those of generation_config.json.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be opened, or there is no such tokenizer.
    """
    checkpoint = open_checkpoint(source, config=config, strategy=strategy)
    files = companions(checkpoint)
    if tokenizer is not None:
        files = {name: content for name, content in files.items() if name not in TOKENIZER_FILES}
        files |= _tokenizer_files(tokenizer)
    if not files.keys() & set(VOCABULARY_FILES):
        log.warning("%s has no tokenizer beside it. Name one with --tokenizer to talk to it.", source.name)
    if generation:
        settings = json.loads(files.get(GENERATION_CONFIG, b"{}"))
        files[GENERATION_CONFIG] = json_bytes({**settings, **generation})
    # Links are not followed: those of a hub's cache lead to files whose names say no format.
    note = {
        "weights": os.path.abspath(source),
        "config": os.path.abspath(config) if config is not None else None,
        "strategy": os.path.abspath(strategy) if strategy is not None else None,
    }
    files[CONFIG] = json_bytes(folder_config(checkpoint.config, checkpoint.dtype, None))
    files[NOTE] = json_bytes(note)
    key = hashlib.sha256(json.dumps(sorted((n, c.hex()) for n, c in files.items())).encode()).hexdigest()
    stem = re.sub(r"[^\w.-]", "-", os.path.basename(os.path.abspath(source)))
    folder = cache_folder() / "references" / key[:16] / stem
    _write(folder, files)
    return folder


def _tokenizer_files(tokenizer: Path) -> dict[str, bytes]:
    """The files of a tokenizer that the user named."""
    found: dict[str, Path] = {}
    if tokenizer.is_dir():
        found = {name: tokenizer / name for name in TOKENIZER_FILES if (tokenizer / name).is_file()}
    elif not tokenizer.is_file():
        raise CheckpointError(f"There is no tokenizer {tokenizer}.", hint=_TOKENIZER_HINT)
    elif tokenizer.suffix in (".model", ".json"):
        found[f"tokenizer{tokenizer.suffix}"] = tokenizer
        settings = tokenizer.with_name("tokenizer_config.json")
        if settings.is_file():
            found[settings.name] = settings
    if not found.keys() & set(VOCABULARY_FILES):
        raise CheckpointError(f"{tokenizer} holds no tokenizer.", hint=_TOKENIZER_HINT)
    return {name: path.read_bytes() for name, path in found.items()}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write small files; several processes may do so at once, each the same."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        temporary = folder / f"{name}.{os.getpid()}"
        temporary.write_bytes(content)
        temporary.replace(folder / name)


class ReferencedWeights(StoredWeights):
    """The weights that a reference stands for, under the names of the parameter table."""

    def __init__(self, folder: Path) -> None:
        source = Path(read_json(folder / NOTE)["weights"])
        checkpoint = open_model_folder(folder)
        self._lazy: dict[str, LazyTensor] = checkpoint.tensors
        paths = sorted(set().union(*(tensor.files() for tensor in self._lazy.values())))
        self.files = WeightFiles(tuple(paths), {})
        self.tensors = {
            name: StoredTensor(name, tensor.shape, tensor.dtype, source)
            for name, tensor in self._lazy.items()
        }

    @property
    def owns_memory(self) -> bool:
        return True

    def stream(self, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._lazy.items():
            if name in wanted:
                memory = empty_pages(tensor.shape, tensor.dtype)
                tensor.read_into(memory, tuple((0, extent) for extent in tensor.shape))
                yield name, memory

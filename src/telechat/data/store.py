"""Keeps encoded samples in a folder as plain arrays, and maps them into memory.

A folder is found by a fingerprint of the files' contents, the tokenizer and the settings, so that whatever
changes one of them is encoded anew. Several processes may ask at once: one encodes, the others wait.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from telechat.data.accounting import Accounting
from telechat.data.origins import Origins
from telechat.data.samples import SampleSet
from telechat.data.sequences import Sequences
from telechat.data.sources import Source
from telechat.tokenizer import Tokenizer
from telechat.tokenizer.load import TOKENIZER_FILES

log = logging.getLogger(__name__)

_VERSION = 2  # of how rows become samples: a change of it makes old folders unfit
_BOOKS = "accounting.json"
_WEIGHTS = "weights"
_FILES = "files.json"


def fingerprint(sources: Sequence[Source], tokenizer: Tokenizer, settings: object) -> str:
    """A name for what these settings make of these files, 32 hex digits.

    Args:
        settings: a record whose `repr` shows every value.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((_VERSION, tokenizer.chat_format.name, settings)).encode())
    names = (*TOKENIZER_FILES, "generation_config.json")
    files = [tokenizer.folder / name for name in names if (tokenizer.folder / name).is_file()]
    for path in files:
        digest.update(_content_digest(path))
    for source in sources:
        # The name counts: rows are drawn with it.
        digest.update(repr((source.drawn_as, source.weight)).encode())
        for path in sorted(source.path.rglob("*")) if source.path.is_dir() else [source.path]:
            digest.update(_content_digest(path) if path.is_file() else b"")
    return digest.hexdigest()


def cached_samples(folder: Path, name: str, load: Callable[[], SampleSet]) -> SampleSet:
    """The samples kept in `folder` under `name`, made and kept first if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    with FileLock(folder / f"{name}.lock"):
        if not (target / _BOOKS).exists():
            draft = folder / f"{name}.partial"
            shutil.rmtree(draft, ignore_errors=True)  # what a killed run left
            save_samples(load(), draft)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(draft, target)
            log.info("encoded samples are kept in %s", target)
    return open_samples(target)


def save_samples(samples: SampleSet, folder: Path) -> None:
    """Write the arrays and the books into a new folder."""
    folder.mkdir(parents=True)
    sequences = samples.sequences
    arrays: dict[str, npt.NDArray[Any]] = {
        "ids": sequences.ids,
        "learnt": sequences.learnt,
        "offsets": sequences.offsets,
        "members": samples.members,
        "starts": samples.starts,
        "origin_rows": samples.origins.rows,
        "origin_starts": samples.origins.starts,
    }
    if sequences.weights is not None:
        arrays[_WEIGHTS] = sequences.weights
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / _FILES).write_text(json.dumps(samples.origins.files), encoding="utf-8")
    (folder / _BOOKS).write_text(json.dumps(samples.accounting.to_json()), encoding="utf-8")


def open_samples(folder: Path) -> SampleSet:
    """What `save_samples` wrote; the tokens stay on the disk until they are used."""

    def array(name: str, mode: Literal["r"] | None) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode=mode)
        return values

    weights = array(_WEIGHTS, "r") if (folder / f"{_WEIGHTS}.npy").exists() else None
    books = json.loads((folder / _BOOKS).read_text(encoding="utf-8"))
    sequences = Sequences(array("ids", "r"), array("learnt", "r"), array("offsets", None), weights)
    files = tuple(json.loads((folder / _FILES).read_text(encoding="utf-8")))
    return SampleSet(
        sequences,
        array("members", None),
        array("starts", None),
        Accounting.from_json(books),
        Origins(files, array("origin_rows", "r"), array("origin_starts", None)),
    )


def _content_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()

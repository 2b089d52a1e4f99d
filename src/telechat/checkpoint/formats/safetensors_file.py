"""Safetensors files as lazy tensors, and the plan of one, byte for byte as the safetensors library writes it.

Knows no names of tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from telechat.checkpoint.formats.file_tensor import FileTensor
from telechat.checkpoint.formats.lazy import LazyTensor
from telechat.checkpoint.formats.streaming import Piece
from telechat.checkpoint.formats.writing import FilePlan
from telechat.checkpoint.headers import read_header
from telechat.checkpoint.weights import SAFETENSORS_DTYPES

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """All tensors of a file by name, in file order.

    Raises:
        CheckpointError: truncated or damaged.
    """
    tensors: dict[str, LazyTensor] = {}
    for name, header in read_header(path).items():
        spans = [(header.offset, header.num_bytes)]
        tensors[name] = FileTensor(path, spans, header.shape, SAFETENSORS_DTYPES[header.dtype])
    return tensors


def plan_safetensors(
    name: str, tensors: Mapping[str, LazyTensor], *, metadata: Mapping[str, str] | None = None
) -> FilePlan:
    """The plan of a file. Wider dtypes come first, then names in order, so that everything is aligned."""
    order = sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    at = 0
    for key in order:
        tensor = tensors[key]
        offsets = [at, at + tensor.num_bytes]
        header[key] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        at = offsets[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = Piece("", None, ((0, len(text).to_bytes(8, "little") + text),))
    return FilePlan(name, (start, *(Piece(key, tensors[key]) for key in order)))

"""Safetensors files as lazy tensors, and the plan of one, byte for byte as the safetensors library writes it.

Knows no names of tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from telechat.checkpoint.formats.file_tensor import FileTensor
from telechat.checkpoint.formats.lazy import LazyTensor
from telechat.checkpoint.formats.streaming import Piece
from telechat.checkpoint.formats.writing import FilePlan
from telechat.checkpoint.headers import read_header
from telechat.errors import CheckpointError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """All tensors of a file by name, in file order.

    Raises:
        CheckpointError: truncated or damaged.
    """
    tensors: dict[str, LazyTensor] = {}
    for name, header in read_header(path).items():
        if header.dtype not in DTYPES:
            raise CheckpointError(f"{path.name}: {name} has dtype {header.dtype}, which torch does not have.")
        spans = [(header.offset, header.num_bytes)]
        tensors[name] = FileTensor(path, spans, header.shape, DTYPES[header.dtype])
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

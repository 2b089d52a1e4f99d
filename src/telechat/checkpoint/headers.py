"""The header of a safetensors file: names, shapes and dtypes without touching the data, and without torch.

A damaged or truncated file is told apart here, by comparing what the header promises with the file's size, so
the message can say by how much it is short.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from telechat.errors import CheckpointError

# Bytes per element of the dtypes that can be read; torch has all of them.
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LFS_POINTER = b"version https://git-lfs"
_DOWNLOAD_AGAIN = "Download the file again."


@dataclass(frozen=True)
class TensorHeader:
    """A stored tensor: shape, dtype in the file format's spelling (`BF16`), bytes on disk, and where."""

    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    offset: int  # from the beginning of the file


def refuse_pointer(path: Path, first_bytes: bytes) -> None:
    """Raise when a weight file is only a Git LFS pointer."""
    if first_bytes.startswith(_LFS_POINTER):
        raise CheckpointError(
            f"{path.name} is a Git LFS pointer, not weights.",
            hint="Run: git lfs pull (inside the model folder).",
        )


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Names and headers of all tensors in a safetensors file, in file order.

    Raises:
        CheckpointError: truncated, malformed, or not a safetensors file.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            refuse_pointer(path, start)
            header_bytes = int.from_bytes(start[:8], "little")
            if len(start) < 8 or not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, file_bytes - 8):
                raise CheckpointError(
                    f"{path.name} ({file_bytes} bytes) is not a complete safetensors file.",
                    hint=_DOWNLOAD_AGAIN,
                )
            file.seek(8)
            raw = json.loads(file.read(header_bytes))
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"The header of {path.name} is damaged.", hint=_DOWNLOAD_AGAIN) from error
    headers, promised = _parse(path, raw, data_start=8 + header_bytes)
    if promised != file_bytes - 8 - header_bytes:
        raise CheckpointError(
            f"{path.name} has {file_bytes - 8 - header_bytes} bytes of tensors, its header says {promised}.",
            hint=_DOWNLOAD_AGAIN,
        )
    return headers


def _parse(path: Path, raw: object, *, data_start: int) -> tuple[dict[str, TensorHeader], int]:
    """Headers by name in file order, and the number of data bytes they promise."""
    if not isinstance(raw, dict):
        raise CheckpointError(f"The header of {path.name} is damaged.", hint=_DOWNLOAD_AGAIN)
    spans: list[tuple[int, int, str, TensorHeader]] = []
    for name, entry in raw.items():
        if name == "__metadata__":
            continue
        try:
            shape = tuple(int(extent) for extent in entry["shape"])
            begin, end = (int(offset) for offset in entry["data_offsets"])
            dtype = str(entry["dtype"])
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"The header of {path.name} is damaged at {name}.", hint=_DOWNLOAD_AGAIN
            ) from error
        if dtype not in DTYPE_BYTES:
            raise CheckpointError(
                f"{path.name}: {name} has dtype {dtype}; {', '.join(DTYPE_BYTES)} can be read.",
                hint="Write it in one of these, with the program that made it.",
            )
        expected = math.prod(shape) * DTYPE_BYTES[dtype]
        if end - begin != expected or begin < 0:
            raise CheckpointError(
                f"{path.name}: {name} {list(shape)} needs {expected} bytes, its header gives {end - begin}.",
                hint=_DOWNLOAD_AGAIN,
            )
        header = TensorHeader(shape, dtype, expected, data_start + begin)
        spans.append((begin, end, name, header))
    spans.sort(key=lambda span: span[:2])
    return {name: header for _, _, name, header in spans}, max((end for _, end, _, _ in spans), default=0)

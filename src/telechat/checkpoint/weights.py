"""Stored tensors: what a checkpoint holds, and one tensor at a time from it.

Nothing in a weight file is ever executed: safetensors hold none, and pickles are read by torch's
weights-only reader, which refuses everything but tensors. Knows nothing of the model they belong to.
"""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telechat.checkpoint.folder import WeightFiles, find_weights
from telechat.checkpoint.headers import read_header, refuse_pointer
from telechat.errors import CheckpointError
from telechat.ops.pages import empty_pages

# In the file format's spelling, all that `read_header` lets pass.
SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip
# What weights may be stored in where they are not quantised.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# In a folder that stands for a checkpoint elsewhere (`formats.reference`).
NOTE = "telechat-source.json"
_READERS = 4
_LEAST_SHARE_BYTES = 4 << 20
# Over what torch's reader of pickles stumbles depends on the damaged bytes.
_STUMBLES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk: its name there, shape, dtype, the file that holds it, and where in it, if known."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    offset: int | None = None


class StoredWeights:
    """All tensors of a checkpoint.

    Attributes:
        files: the weight files.
        tensors: by name on disk.
    """

    def __init__(self, files: WeightFiles) -> None:
        self.files = files
        self.tensors: dict[str, StoredTensor] = {}
        for path in files.files:
            for stored in _list_safetensors(path) if files.is_safetensors else _list_pickle(path):
                if stored.name in self.tensors:
                    raise CheckpointError(
                        f"{stored.name} is in both {self.tensors[stored.name].file.name} and {path.name}."
                    )
                self.tensors[stored.name] = stored
        for name, file in files.placed.items():
            if name not in self.tensors or self.tensors[name].file.name != file:
                raise CheckpointError(f"The index says that {file} holds {name}; it does not.")

    @property
    def owns_memory(self) -> bool:
        """Whether tensors that are read have memory of their own."""
        return self.files.is_safetensors

    def stream(self, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """The wanted tensors as (name, tensor on the CPU in its stored dtype), file by file.

        A tensor of a `.bin` file is backed by that file, not by memory of its own (`owns_memory`): copy it
        before asking for the next one.
        """
        for path in self.files.files:
            names = [name for name, stored in self.tensors.items() if stored.file == path and name in wanted]
            if not names:
                continue
            if self.files.is_safetensors:
                for name in names:
                    yield name, _read_tensor(self.tensors[name])
            else:
                content = load_pickle(path)
                for name in names:
                    yield name, content.pop(name)


def open_weights(folder: str | Path) -> StoredWeights:
    """List the tensors of a model folder.

    Raises:
        CheckpointError: no weights, a file missing, truncated or damaged, or one that would run code.
    """
    if (Path(folder) / NOTE).is_file():
        # The formats are made of this module's parts.
        from telechat.checkpoint.formats.reference import ReferencedWeights

        return ReferencedWeights(Path(folder))
    return StoredWeights(find_weights(Path(folder)))


def _list_safetensors(path: Path) -> Iterator[StoredTensor]:
    for name, header in read_header(path).items():
        yield StoredTensor(name, header.shape, SAFETENSORS_DTYPES[header.dtype], path, header.offset)


def _read_tensor(stored: StoredTensor) -> Tensor:
    """Read into memory of its own, a large tensor by several threads: mapping the file would count it twice,
    and one thread does not keep a fast disk busy."""
    assert stored.offset is not None
    tensor = empty_pages(stored.shape, stored.dtype)
    if not tensor.numel():
        return tensor
    content = tensor.reshape(-1).view(torch.uint8).numpy().data
    share = max(_LEAST_SHARE_BYTES, -(-len(content) // _READERS))
    starts = range(0, len(content), share)
    try:
        if len(starts) == 1:
            _read_into(stored.file, stored.offset, content)
        else:
            with ThreadPoolExecutor(len(starts)) as readers:
                for done in [
                    readers.submit(_read_into, stored.file, stored.offset + at, content[at : at + share])
                    for at in starts
                ]:
                    done.result()
    except OSError as error:
        raise CheckpointError(
            f"{stored.file.name} cannot be read: {error.strerror or error}.", hint="Download the file again."
        ) from error
    return tensor


def _read_into(path: Path, offset: int, memory: memoryview) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        filled = 0
        while filled < len(memory):
            num_bytes = file.readinto(memory[filled:])
            if not num_bytes:
                raise OSError(f"it ends {len(memory) - filled} bytes early")
            filled += num_bytes


def _list_pickle(path: Path) -> Iterator[StoredTensor]:
    for name, tensor in load_pickle(path).items():
        yield StoredTensor(name, tuple(tensor.shape), tensor.dtype, path)


def load_pickle(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.bin` file, mapped from the file where its format allows.

    Files of torch before 1.6 are not zip archives and are read whole: there the peak is the model plus one
    file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
        refuse_pointer(path, start)
        is_zip = start.startswith(b"PK")
        with warnings.catch_warnings():
            # torch comments on the pickle protocol of files that it then refuses.
            warnings.simplefilter("ignore", UserWarning)
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} is damaged or holds more than tensors; loading it could run code: refused.",
            hint="Ask its author for safetensors, or download it again.",
        ) from error
    except _STUMBLES as error:
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path.name} is truncated or damaged ({reason}).", hint="Download the file again."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path.name} is not a table of tensors by name.")
    return content

"""A tensor whose bytes lie in a file, in one run or several; any window of it is read without the rest."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from io import FileIO
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from telechat.checkpoint.formats.lazy import STAGING_BYTES, LazyTensor, Run, Window, slices, whole
from telechat.errors import CheckpointError


class FileTensor(LazyTensor):
    """A tensor whose bytes lie in a file, in C order, in one run or several.

    Args:
        spans: (offset, bytes) of the runs, in the order of the tensor's bytes.
    """

    def __init__(
        self, path: Path, spans: Sequence[tuple[int, int]], shape: Sequence[int], dtype: torch.dtype
    ) -> None:
        super().__init__(shape, dtype, (str(path), tuple(spans)))
        self.path = path
        self._spans = tuple(spans)
        self._ends = tuple(accumulate(num_bytes for _, num_bytes in spans))
        assert (self._ends[-1] if self._ends else 0) == self.num_bytes, (path, shape, dtype)

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        return ()

    def files(self) -> set[Path]:
        return {self.path}

    def runs(self) -> list[Run] | None:
        return [Run(self.path, offset, num_bytes) for offset, num_bytes in self._spans]

    def read_into(self, out: Tensor, window: Window) -> None:
        if out.numel():
            with self.path.open("rb", buffering=0) as file:
                self._read(file, out, 0, self.shape, window)

    def _read(self, file: FileIO, out: Tensor, at: int, shape: tuple[int, ...], window: Window) -> None:
        """Read a window of the sub-tensor of `shape` whose bytes begin `at` bytes into the tensor."""
        itemsize = self.dtype.itemsize
        if not shape:
            shape, window, out = (1,), ((0, 1),), out.reshape(1)
        (start, stop), inner = window[0], window[1:]
        row_bytes = math.prod(shape[1:]) * itemsize
        is_rows = inner == whole(shape[1:])
        if is_rows and out.is_contiguous() and out.dtype == self.dtype:
            self._fill(file, _bytes_of(out), at + start * row_bytes)
        elif row_bytes > STAGING_BYTES and len(shape) > 1:
            for index in range(start, stop):
                self._read(file, out[index - start], at + index * row_bytes, shape[1:], inner)
        else:
            step = max(1, STAGING_BYTES // row_bytes)
            for row in range(start, stop, step):
                count = min(step, stop - row)
                staged = torch.empty((count, *shape[1:]), dtype=self.dtype)
                self._fill(file, _bytes_of(staged), at + row * row_bytes)
                out[row - start : row - start + count].copy_(staged[(slice(None), *slices(inner))])

    def _fill(self, file: FileIO, memory: memoryview, at: int) -> None:
        """Fill memory from byte `at` of the tensor on."""
        number = bisect_right(self._ends, at)
        while len(memory):
            offset, num_bytes = self._spans[number]
            skipped = at - (self._ends[number] - num_bytes)
            take = min(len(memory), num_bytes - skipped)
            _read_exactly(file, offset + skipped, memory[:take], self.path)
            memory, at, number = memory[take:], at + take, number + 1


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    flat: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return flat


def _read_exactly(file: FileIO, offset: int, memory: memoryview, path: Path) -> None:
    try:
        file.seek(offset)
        filled = 0
        while filled < len(memory):
            num_bytes = file.readinto(memory[filled:])
            if not num_bytes:
                raise CheckpointError(
                    f"{path.name} ends {len(memory) - filled} bytes early.", hint="Copy or download it again."
                )
            filled += num_bytes
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error

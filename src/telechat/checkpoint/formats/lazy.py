"""Tensors that have not been read yet, and what can be made of them without reading them.

A conversion is a table from names to such tensors. Each knows its shape and dtype and can write any window of
itself into memory that somebody else holds, so a whole conversion needs the memory of the window being
written and of one small buffer. Everything but `mapped` only moves numbers about and is exact.

Knows neither names nor formats.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

# (start, stop) of each dimension.
Window = tuple[tuple[int, int], ...]

STAGING_BYTES = 1 << 20


@dataclass(frozen=True)
class Run:
    """Bytes that lie one after the other in a file."""

    path: Path
    offset: int
    num_bytes: int


T = TypeVar("T")


def whole(shape: Sequence[int]) -> Window:
    """The window that is all of a tensor."""
    return tuple((0, extent) for extent in shape)


def window_shape(window: Window) -> tuple[int, ...]:
    """Shape of what a window shows."""
    return tuple(stop - start for start, stop in window)


def windows(shape: Sequence[int], itemsize: int, most_bytes: int) -> Iterator[Window]:
    """Cut a tensor into windows of at most `most_bytes` (a single number may exceed it), in memory order."""
    row_bytes = math.prod(shape[1:]) * itemsize
    if not shape or row_bytes * shape[0] <= most_bytes:
        yield whole(shape)
        return
    if row_bytes > most_bytes and len(shape) > 1:
        for index in range(shape[0]):
            for inner in windows(shape[1:], itemsize, most_bytes):
                yield ((index, index + 1), *inner)
        return
    step = max(1, most_bytes // row_bytes)
    for start in range(0, shape[0], step):
        yield ((start, min(start + step, shape[0])), *whole(shape[1:]))


def runs_between(runs: Sequence[Run], start: int, stop: int) -> Iterator[Run]:
    """Bytes start .. stop-1 of what lies in runs one after the other."""
    for run in runs:
        first, last = max(start, 0), min(stop, run.num_bytes)
        if first < last:
            yield Run(run.path, run.offset + first, last - first)
        start, stop = start - run.num_bytes, stop - run.num_bytes


class LazyTensor(ABC):
    """A tensor that can be read, whole or in part.

    Attributes:
        shape: extents.
        dtype: dtype of its numbers; `read_into` converts when asked for another.
        settings: what its numbers depend on besides its parts and files; its `repr` counts.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, settings: object = None) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype
        self.settings = settings

    @property
    def num_bytes(self) -> int:
        """Bytes in its own dtype."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    @abstractmethod
    def parts(self) -> tuple[LazyTensor, ...]:
        """What it is made of."""

    @abstractmethod
    def read_into(self, out: Tensor, window: Window) -> None:
        """Write a window into `out`, which has the window's shape, any strides and any dtype."""

    def read(self, window: Window | None = None) -> Tensor:
        """A window, by default everything, in memory of its own."""
        window = whole(self.shape) if window is None else window
        out = torch.empty(window_shape(window), dtype=self.dtype)
        self.read_into(out, window)
        return out

    @cached_property
    def identity(self) -> bytes:
        """A hash of how it is made: tensors with the same one are equal as long as their files are."""
        made = type(self).__name__, self.shape, self.dtype, self.settings, [p.identity for p in self.parts]
        return hashlib.sha256(repr(made).encode()).digest()

    def files(self) -> set[Path]:
        """The files that reading touches."""
        return set().union(*(part.files() for part in self.parts))

    def runs(self) -> list[Run] | None:
        """Where its bytes lie in files just as they are, in C order; None where they have to be made."""
        return None


class HeldTensor(LazyTensor):
    """A tensor that is in memory, or mapped from a file by torch."""

    def __init__(self, tensor: Tensor, path: Path | None = None) -> None:
        super().__init__(tensor.shape, tensor.dtype)
        self._tensor = tensor
        self._path = path

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        return ()

    @cached_property
    def identity(self) -> bytes:
        offset, content = self._tensor.storage_offset(), self._tensor.flatten().view(torch.uint8)
        self.settings = (self._path, offset) if self._path else hashlib.sha256(content.numpy().data).digest()
        return super().identity

    def files(self) -> set[Path]:
        return {self._path} if self._path else set()

    def read_into(self, out: Tensor, window: Window) -> None:
        out.copy_(self._tensor[slices(window)])


class _Cut(LazyTensor):
    def __init__(self, source: LazyTensor, window: Window) -> None:
        super().__init__(window_shape(window), source.dtype, window)
        self._source, self._window = source, window

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        return (self._source,)

    def read_into(self, out: Tensor, window: Window) -> None:
        moved = zip(window, self._window, strict=True)
        self._source.read_into(out, tuple((start + by, stop + by) for (start, stop), (by, _) in moved))

    def runs(self) -> list[Run] | None:
        at = _run_start(self._source.shape, self._window)
        source = self._source.runs() if at is not None else None
        if at is None or source is None:
            return None
        begin = at * self.dtype.itemsize
        return list(runs_between(source, begin, begin + self.num_bytes))


class _Join(LazyTensor):
    def __init__(self, parts: Sequence[LazyTensor], axis: int) -> None:
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        super().__init__(shape, parts[0].dtype, axis)
        self._parts, self._axis = tuple(parts), axis
        self._ends = tuple(accumulate(part.shape[axis] for part in parts))

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        return self._parts

    def read_into(self, out: Tensor, window: Window) -> None:
        axis = self._axis
        start, stop = window[axis]
        number, at = bisect_right(self._ends, start), start
        while at < stop:
            part = self._parts[number]
            begin = self._ends[number] - part.shape[axis]
            end = min(stop, self._ends[number])
            inner = (*window[:axis], (at - begin, end - begin), *window[axis + 1 :])
            part.read_into(out.narrow(axis, at - start, end - at), inner)
            at, number = end, number + 1

    def runs(self) -> list[Run] | None:
        if math.prod(self.shape[: self._axis]) != 1:
            return None
        found: list[Run] = []
        for part in self._parts:
            runs = part.runs()
            if runs is None:
                return None
            found += runs
        return found


class _Transposed(LazyTensor):
    def __init__(self, source: LazyTensor, first: int, second: int) -> None:
        super().__init__(_swapped(source.shape, first, second), source.dtype, (first, second))
        self._source, self._dims = source, (first, second)

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        return (self._source,)

    def read_into(self, out: Tensor, window: Window) -> None:
        self._source.read_into(out.transpose(*self._dims), _swapped(window, *self._dims))


class _UnitDims(LazyTensor):
    """The same numbers with dimensions of extent 1 added or left out."""

    def __init__(self, source: LazyTensor, shape: Sequence[int]) -> None:
        super().__init__(shape, source.dtype)
        assert [n for n in shape if n != 1] == [n for n in source.shape if n != 1], (shape, source.shape)
        self._source = source

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        return (self._source,)

    def read_into(self, out: Tensor, window: Window) -> None:
        if not out.numel():
            return
        long = iter(part for part, extent in zip(window, self.shape, strict=True) if extent != 1)
        inner = tuple((0, 1) if extent == 1 else next(long) for extent in self._source.shape)
        keep = [number for number, extent in enumerate(self.shape) if extent != 1]
        squeezed = out[tuple(slice(None) if number in keep else 0 for number in range(out.dim()))]
        index = tuple(None if extent == 1 else slice(None) for extent in self._source.shape)
        self._source.read_into(squeezed[index], inner)

    def runs(self) -> list[Run] | None:
        return self._source.runs()


class _Cast(LazyTensor):
    def __init__(self, source: LazyTensor, dtype: torch.dtype) -> None:
        super().__init__(source.shape, dtype)
        self._source = source

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        return (self._source,)

    def read_into(self, out: Tensor, window: Window) -> None:
        if out.dtype == self.dtype:
            self._source.read_into(out, window)
        else:
            out.copy_(self.read(window))


class _Mapped(LazyTensor):
    def __init__(
        self,
        sources: Sequence[LazyTensor],
        function: Callable[..., Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        block: int,
        key: str,
    ) -> None:
        super().__init__(shape, dtype, (function.__qualname__, key))
        self._sources, self._function, self._block = tuple(sources), function, block

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        return self._sources

    def read_into(self, out: Tensor, window: Window) -> None:
        (start, stop), inner = window[0], window[1:]
        block = self._block
        row_bytes = max(math.prod(source.shape[1:]) * source.dtype.itemsize for source in self._sources)
        step = max(1, STAGING_BYTES // (row_bytes * block)) * block
        for begin in range(start // block * block, stop, step):
            end = min(-(-stop // block) * block, begin + step, self.shape[0])
            rows = [source.read(((begin, end), *whole(source.shape[1:]))) for source in self._sources]
            made = self._function(*rows)
            first, last = max(begin, start), min(end, stop)
            wanted = made[(slice(first - begin, last - begin), *slices(inner))]
            out[first - start : last - start].copy_(wanted)


class _Zeros(LazyTensor):
    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        return ()

    def read_into(self, out: Tensor, window: Window) -> None:
        out.zero_()


def _run_start(shape: Sequence[int], window: Window) -> int | None:
    """The first number of a window in a tensor's memory; None where others lie between its own."""
    first = next((axis for axis, (start, stop) in enumerate(window) if stop - start != 1), len(window))
    if any(part != (0, extent) for part, extent in list(zip(window, shape, strict=True))[first + 1 :]):
        return None
    return sum(start * math.prod(shape[axis + 1 :]) for axis, (start, _) in enumerate(window))


def cut(tensor: LazyTensor, axis: int, start: int, stop: int) -> LazyTensor:
    """Indices start .. stop-1 of one dimension."""
    window = list(whole(tensor.shape))
    assert 0 <= start <= stop <= window[axis][1], (start, stop, tensor.shape)
    window[axis] = (start, stop)
    return tensor if tuple(window) == whole(tensor.shape) else _Cut(tensor, tuple(window))


def cut_window(tensor: LazyTensor, window: Window) -> LazyTensor:
    """A window as a tensor."""
    return tensor if window == whole(tensor.shape) else _Cut(tensor, window)


def join(parts: Sequence[LazyTensor], axis: int = 0) -> LazyTensor:
    """Tensors one after the other along a dimension; their other extents and dtypes are equal."""
    first = parts[0]
    for part in parts:
        same = part.shape[:axis] + part.shape[axis + 1 :] == first.shape[:axis] + first.shape[axis + 1 :]
        assert same and part.dtype == first.dtype, [(part.shape, part.dtype) for part in parts]
    return first if len(parts) == 1 else _Join(parts, axis)


def stack(parts: Sequence[LazyTensor]) -> LazyTensor:
    """Equal shapes stacked along a new first dimension."""
    return join([with_shape(part, (1, *part.shape)) for part in parts])


def transposed(tensor: LazyTensor, first: int = 0, second: int = 1) -> LazyTensor:
    """Two dimensions swapped."""
    return _Transposed(tensor, first, second)


def with_shape(tensor: LazyTensor, shape: Sequence[int]) -> LazyTensor:
    """The same numbers with dimensions of extent 1 added or left out."""
    return tensor if tuple(shape) == tensor.shape else _UnitDims(tensor, shape)


def cast(tensor: LazyTensor, dtype: torch.dtype | None) -> LazyTensor:
    """The tensor in another dtype, rounded to nearest; None leaves it."""
    return tensor if dtype in (None, tensor.dtype) else _Cast(tensor, dtype)


def zeros(shape: Sequence[int], dtype: torch.dtype) -> LazyTensor:
    """Nothing but zeros."""
    return _Zeros(shape, dtype)


def mapped(
    sources: LazyTensor | Sequence[LazyTensor],
    function: Callable[..., Tensor],
    *,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    block: int = 1,
    key: str = "",
) -> LazyTensor:
    """A function of rows: it is given the same run of rows of every source and returns the rows made of them.

    Args:
        shape, dtype: of the result; by default those of the first source.
        block: rows that must be given together; runs begin and end at multiples of it.
        key: what the function depends on besides the rows and the model's config.
    """
    sources = [sources] if isinstance(sources, LazyTensor) else list(sources)
    first = sources[0]
    return _Mapped(sources, function, shape or first.shape, dtype or first.dtype, block, key)


def same_numbers(first: LazyTensor, second: LazyTensor) -> bool:
    """Whether two tensors hold the same, compared a stretch at a time."""
    if first.shape != second.shape:
        return False
    parts = windows(first.shape, first.dtype.itemsize, STAGING_BYTES)
    return all(torch.equal(first.read(part), second.read(part).to(first.dtype)) for part in parts)


def _swapped(values: tuple[T, ...], first: int, second: int) -> tuple[T, ...]:
    swapped = list(values)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    return tuple(swapped)


def slices(window: Window) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in window)

"""The bytes of a file's pieces, one after the other, in little memory.

A piece is a tensor with bytes put between its own (headers, padding). Where a tensor's bytes lie in a file
just as they are wanted, it is said where; of other tensors, windows are read by several threads ahead of the
one that writes. Knows no files to write to.
"""

from __future__ import annotations

import math
import queue
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from telechat.checkpoint.formats.lazy import LazyTensor, Run, Window, runs_between, window_shape, windows

WINDOW_BYTES = 4 << 20
READERS = 3
AHEAD = 4  # windows in memory beside the one being written


@dataclass(frozen=True)
class Piece:
    """A stretch of a file.

    Attributes:
        name: of the tensor, for messages; empty for a header.
        tensor: written in its own dtype, in C order; None for a piece of plain bytes.
        inserts: (offset into the tensor's bytes, bytes put there), in ascending order.
    """

    name: str
    tensor: LazyTensor | None
    inserts: tuple[tuple[int, bytes], ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        inserted = sum(len(content) for _, content in self.inserts)
        return inserted + (self.tensor.num_bytes if self.tensor is not None else 0)


def stream(pieces: Sequence[Piece], *, may_copy: bool) -> Iterator[memoryview | Run]:
    """The bytes of the pieces, or where they lie.

    Tensors are read ahead by several threads into a few buffers used in turn.
    """
    buffers: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
    for _ in range(AHEAD + 1):
        buffers.put(torch.empty(0, dtype=torch.uint8))
    waiting: deque[tuple[_Step, Future[tuple[Tensor, int]] | None]] = deque()
    with ThreadPoolExecutor(READERS) as readers:
        try:
            for step in _steps(pieces, may_copy):
                reading = None
                if step.window is not None and step.piece.tensor is not None:
                    reading = readers.submit(_read, step.piece.tensor, step.window, buffers)
                waiting.append((step, reading))
                if len(waiting) > AHEAD:
                    yield from _done(*waiting.popleft(), buffers)
            while waiting:
                yield from _done(*waiting.popleft(), buffers)
        finally:
            for _, reading in waiting:
                if reading is not None:
                    reading.cancel()


@dataclass(frozen=True)
class _Step:
    """What is written next of a piece.

    Attributes:
        start: offset into the tensor's bytes.
        num_bytes: of the tensor.
        window: to be read; None where there is nothing to read.
        runs: where the bytes lie, if they are to be copied.
    """

    piece: Piece
    start: int = 0
    num_bytes: int = 0
    window: Window | None = None
    runs: Sequence[Run] = ()

    def inserts(self) -> Iterator[tuple[int, bytes]]:
        """(offset into this step's bytes, bytes put there)."""
        for offset, content in self.piece.inserts:
            if not self.num_bytes or self.start <= offset < self.start + self.num_bytes:
                yield offset - self.start, content


def _steps(pieces: Sequence[Piece], may_copy: bool) -> Iterator[_Step]:
    for piece in pieces:
        tensor = piece.tensor
        if tensor is None or not tensor.num_bytes:
            yield _Step(piece)
            continue
        runs = tensor.runs() if may_copy else None
        if runs is not None:
            yield _Step(piece, num_bytes=tensor.num_bytes, runs=runs)
            continue
        at = 0
        for window in windows(tensor.shape, tensor.dtype.itemsize, WINDOW_BYTES):
            num_bytes = math.prod(window_shape(window)) * tensor.dtype.itemsize
            yield _Step(piece, at, num_bytes, window)
            at += num_bytes


def _read(tensor: LazyTensor, window: Window, buffers: queue.SimpleQueue[Tensor]) -> tuple[Tensor, int]:
    """(a buffer, how many bytes of it are the window's). Called in a reading thread."""
    shape = window_shape(window)
    num_bytes = math.prod(shape) * tensor.dtype.itemsize
    buffer = buffers.get()
    if len(buffer) < num_bytes:
        buffer = torch.empty(num_bytes, dtype=torch.uint8)
    tensor.read_into(buffer[:num_bytes].view(tensor.dtype).view(shape), window)
    return buffer, num_bytes


def _done(
    step: _Step, reading: Future[tuple[Tensor, int]] | None, buffers: queue.SimpleQueue[Tensor]
) -> Iterator[memoryview | Run]:
    """The bytes of one step with what is inserted among them."""
    if reading is None:
        at = 0
        for offset, content in step.inserts():
            yield from runs_between(step.runs, at, offset)
            at = offset
            yield memoryview(content)
        yield from runs_between(step.runs, at, step.num_bytes)
        return
    buffer, num_bytes = reading.result()
    memory: memoryview = buffer[:num_bytes].numpy().data
    at = 0
    for offset, content in step.inserts():
        yield memory[at:offset]
        at = offset
        yield memoryview(content)
    yield memory[at:]
    buffers.put(buffer)

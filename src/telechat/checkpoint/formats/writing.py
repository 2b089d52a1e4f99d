"""Files written from a plan: streamed, resumable, and under their final name only when complete.

A plan lists the pieces of every file; a piece is a tensor with bytes put between its own (headers, padding).
Windows of tensors are read by several threads ahead of the one that writes. Everything grows in
`NAME.partial` beside the target; a run that finds the same plan there continues where the last one ended.
Knows no format.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from telechat.checkpoint.formats.lazy import LazyTensor, Window, window_shape, windows
from telechat.errors import CheckpointError

OnProgress = Callable[[int, int], None]

WINDOW_BYTES = 16 << 20
READERS = 3
AHEAD = 4  # windows in memory beside the one being written
PLAN = "plan.json"
_READ_BACK_BYTES = 1 << 20


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


@dataclass(frozen=True)
class FilePlan:
    """A file: its path below the target folder, its pieces, and what is computed from all bytes before it.

    Attributes:
        trailer: (CRC-32 of everything before it) -> last bytes of the file; None for none.
        trailer_bytes: how many these are.
    """

    name: str
    pieces: tuple[Piece, ...]
    trailer: Callable[[int], bytes] | None = None
    trailer_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return sum(piece.num_bytes for piece in self.pieces) + self.trailer_bytes


@dataclass(frozen=True)
class TargetPlan:
    """Everything a conversion writes.

    Attributes:
        files: the large ones.
        small: contents of small files by path below the folder.
        is_file: the target is the one file of `files` itself, not a folder.
    """

    files: tuple[FilePlan, ...]
    small: Mapping[str, bytes] = field(default_factory=dict)
    is_file: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(plan.num_bytes for plan in self.files) + sum(map(len, self.small.values()))


def plain_file(name: str, content: bytes) -> FilePlan:
    """A file of given bytes."""
    return FilePlan(name, (Piece("", None, ((0, content),)),))


def check_target(target: Path) -> None:
    """Refuse a target that exists already and holds something.

    Raises:
        CheckpointError: it does.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise CheckpointError(f"{target} exists already.", hint="Name one that does not, or remove it.")


def write_target(target: Path, plan: TargetPlan, on_progress: OnProgress | None = None) -> None:
    """Write everything, then give it its final name.

    What is missing from an earlier run of the same plan is added to it.

    Raises:
        CheckpointError: the target exists, too little space, the disk is full or cannot be written; what
            was written stays in `TARGET.partial` for the next run.
    """
    check_target(target)
    partial = target.with_name(target.name + ".partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(partial.with_name(partial.name + ".lock"), timeout=0):
            _prepare(partial, plan)
            _check_space(partial, plan)
            _write_files(partial, plan, on_progress)
            _finish(partial, target, plan)
        with contextlib.suppress(OSError):
            partial.with_name(partial.name + ".lock").unlink()
    except Timeout as error:
        raise CheckpointError(f"Another process is writing {target}.", hint="Wait for it.") from error
    except OSError as error:
        raise CheckpointError(
            f"Cannot write {target}: {error.strerror or error}.",
            hint=f"Make room and run the command again: it continues from {partial.name}.",
        ) from error


def fingerprint(plan: TargetPlan) -> str:
    """A hash of what is written and of which files, as they are now, it is read from."""
    digest = hashlib.sha256()
    sources: set[Path] = set()
    for file in plan.files:
        digest.update(f"file {file.name} {file.num_bytes}\n".encode())
        for piece in file.pieces:
            digest.update(f"{piece.name} {piece.inserts!r}\n".encode())
            if piece.tensor is not None:
                digest.update(f"{piece.tensor.shape} {piece.tensor.dtype}\n".encode())
                sources |= piece.tensor.files()
    for path in sorted(sources):
        status = path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    for name, content in sorted(plan.small.items()):
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def _prepare(partial: Path, plan: TargetPlan) -> None:
    """A folder to continue in, or an empty one."""
    mark = {"plan": fingerprint(plan)}
    note = partial / PLAN
    if partial.exists():
        if not note.is_file():
            raise CheckpointError(f"{partial} is in the way.", hint="Remove it.")
        if note.read_text(encoding="utf-8") == json.dumps(mark):
            return
        shutil.rmtree(partial)
    partial.mkdir()
    note.write_text(json.dumps(mark), encoding="utf-8")


def _check_space(partial: Path, plan: TargetPlan) -> None:
    there = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    needed, free = plan.num_bytes - there, shutil.disk_usage(partial).free
    if needed > free:
        raise CheckpointError(
            f"{needed / 1e9:.2f} GB are needed; the disk of {partial.parent} has {free / 1e9:.2f} GB free.",
            hint="Make room, or choose a folder on a larger disk.",
        )


def _write_files(partial: Path, plan: TargetPlan, on_progress: OnProgress | None) -> None:
    num_done, num_all = 0, sum(file.num_bytes for file in plan.files)
    for file in plan.files:
        path = partial / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        for num_bytes in _write_file(path, file):
            num_done += num_bytes
            if on_progress is not None:
                on_progress(num_done, num_all)
    for name, content in plan.small.items():
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _finish(partial: Path, target: Path, plan: TargetPlan) -> None:
    if plan.is_file:
        [only] = plan.files
        if target.is_dir():
            target.rmdir()
        os.replace(partial / only.name, target)
        shutil.rmtree(partial)
        return
    (partial / PLAN).unlink()
    if target.is_dir():
        target.rmdir()
    partial.rename(target)


def _write_file(path: Path, plan: FilePlan) -> Iterator[int]:
    """Write or continue a file; yields bytes as they are done."""
    first, have = _resume_point(path, plan)
    with path.open("ab", buffering=0) as file:
        file.truncate(have)
        file.seek(have)
        crc = _crc_of(path, have) if plan.trailer is not None else 0
        if have:
            yield have
        for memory in _stream(plan.pieces[first:]):
            _write_all(file, memory)
            if plan.trailer is not None:
                crc = zlib.crc32(memory, crc)
            yield len(memory)
        if plan.trailer is not None:
            _write_all(file, memoryview(plan.trailer(crc)))
            yield plan.trailer_bytes
        os.fsync(file.fileno())


def _resume_point(path: Path, plan: FilePlan) -> tuple[int, int]:
    """(first piece to write, bytes to keep): whole pieces only, the last of them written again.

    The last one is in doubt: a machine that went down may have kept a file's size but not its content.
    """
    size = path.stat().st_size if path.exists() else 0
    first = kept = 0
    ends = 0
    for number, piece in enumerate(plan.pieces):
        begin, ends = ends, ends + piece.num_bytes
        if ends > size:
            break
        first, kept = number, begin
    return first, kept


def _crc_of(path: Path, num_bytes: int) -> int:
    crc = 0
    with path.open("rb") as file:
        while num_bytes:
            content = file.read(min(_READ_BACK_BYTES, num_bytes))
            crc, num_bytes = zlib.crc32(content, crc), num_bytes - len(content)
    return crc


def _write_all(file: FileIO, memory: memoryview) -> None:
    while len(memory):
        memory = memory[file.write(memory) :]


def _stream(pieces: Sequence[Piece]) -> Iterator[memoryview]:
    """The bytes of the pieces; tensors are read ahead by several threads into a few buffers used in turn."""
    buffers: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
    for _ in range(AHEAD + 1):
        buffers.put(torch.empty(0, dtype=torch.uint8))
    waiting: deque[tuple[Piece, int, Future[tuple[Tensor, int]] | None]] = deque()
    with ThreadPoolExecutor(READERS) as readers:
        try:
            for piece, start, window in _steps(pieces):
                reading = None
                if window is not None and piece.tensor is not None:
                    reading = readers.submit(_read, piece.tensor, window, buffers)
                waiting.append((piece, start, reading))
                if len(waiting) > AHEAD:
                    yield from _done(*waiting.popleft(), buffers)
            while waiting:
                yield from _done(*waiting.popleft(), buffers)
        finally:
            for _, _, reading in waiting:
                if reading is not None:
                    reading.cancel()


def _steps(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, int, Window | None]]:
    """(piece, offset into its tensor's bytes, window to read there, or None for what has no tensor)."""
    for piece in pieces:
        tensor = piece.tensor
        if tensor is None or not tensor.num_bytes:
            yield piece, 0, None
            continue
        at = 0
        for window in windows(tensor.shape, tensor.dtype.itemsize, WINDOW_BYTES):
            yield piece, at, window
            num_bytes = tensor.dtype.itemsize
            for extent in window_shape(window):
                num_bytes *= extent
            at += num_bytes


def _read(tensor: LazyTensor, window: Window, buffers: queue.SimpleQueue[Tensor]) -> tuple[Tensor, int]:
    """(a buffer, how many bytes of it are the window's). Called in a reading thread."""
    shape = window_shape(window)
    num_bytes = tensor.dtype.itemsize
    for extent in shape:
        num_bytes *= extent
    buffer = buffers.get()
    if len(buffer) < num_bytes:
        buffer = torch.empty(num_bytes, dtype=torch.uint8)
    tensor.read_into(buffer[:num_bytes].view(tensor.dtype).view(shape), window)
    return buffer, num_bytes


def _done(
    piece: Piece, start: int, reading: Future[tuple[Tensor, int]] | None, buffers: queue.SimpleQueue[Tensor]
) -> Iterator[memoryview]:
    """The bytes of one step with what is inserted among them."""
    if reading is None:
        for _, content in piece.inserts:
            yield memoryview(content)
        return
    buffer, num_bytes = reading.result()
    memory: memoryview = buffer[:num_bytes].numpy().data
    at = 0
    for offset, content in piece.inserts:
        if start <= offset < start + num_bytes:
            yield memory[at : offset - start]
            at = offset - start
            yield memoryview(content)
    yield memory[at:]
    buffers.put(buffer)

"""Files written from a plan: streamed, resumable, and under their final name only when complete.

A plan lists the pieces of every file. Everything grows in `NAME.partial` beside the target; a run that finds
the same plan there continues where the last one ended. Knows no format.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from filelock import FileLock, Timeout

from telechat.checkpoint.formats.file_copying import begin_writeback, copy_run
from telechat.checkpoint.formats.lazy import Run
from telechat.checkpoint.formats.streaming import Piece, stream
from telechat.errors import CheckpointError

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]

PLAN = "plan.json"
_READ_BACK_BYTES = 1 << 20
_WRITEBACK_BYTES = 32 << 20


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
    """Refuse a target that exists already and holds something, or lies in what is no folder.

    Raises:
        CheckpointError: it does.
    """
    above = next((folder for folder in target.absolute().parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise CheckpointError(f"{target} cannot be written: {above} is a file, not a folder.")
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
    with writing(target, partial, hint=f"Run the command again: it continues from {partial.name}."):
        _prepare(partial, plan)
        _check_space(partial, plan)
        _write_files(partial, plan, on_progress)
        _finish(partial, target, plan)


@contextlib.contextmanager
def writing(target: Path, work: Path, *, hint: str | None = None) -> Iterator[None]:
    """While the context lasts, no other process writes a target by way of `work`.

    Args:
        hint: what to do where the disk is full or cannot be written.

    Raises:
        CheckpointError: another one does, or an OSError of the body.
    """
    lock = FileLock(work.with_name(work.name + ".lock"), timeout=0)
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise CheckpointError(f"Another process is writing {target}.", hint="Wait for it.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot write {target}: {error.strerror or error}.") from error
    try:
        yield
    except KeyboardInterrupt:
        if hint:
            log.warning("Interrupted. %s", hint)
        raise
    except OSError as error:
        raise CheckpointError(f"Cannot write {target}: {error.strerror or error}.", hint=hint) from error
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()


def fingerprint(plan: TargetPlan) -> str:
    """A hash of what is written, how it is made, and of which files, as they are now, it is read from."""
    digest = hashlib.sha256()
    sources: set[Path] = set()
    for file in plan.files:
        digest.update(f"file {file.name} {file.num_bytes}\n".encode())
        for piece in file.pieces:
            digest.update(f"{piece.name} {piece.inserts!r}\n".encode())
            if piece.tensor is not None:
                digest.update(piece.tensor.identity)
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
    path.touch()
    with path.open("r+b", buffering=0) as file:
        file.truncate(have)
        file.seek(have)
        if have:
            yield have
        written = begun = have
        for num_bytes in _content(file, plan, first):
            written += num_bytes
            yield num_bytes
            if written - begun >= _WRITEBACK_BYTES:
                begin_writeback(file, begun, written - begun)
                begun = written
        os.fsync(file.fileno())


def _content(file: FileIO, plan: FilePlan, first: int) -> Iterator[int]:
    """Write the pieces from `first` on and the trailer; yields bytes as they are done."""
    sums_up = plan.trailer is not None
    crc = _crc_of(Path(file.name), file.tell()) if sums_up else 0
    for part in stream(plan.pieces[first:], may_copy=not sums_up):
        if isinstance(part, Run):
            yield from copy_run(part, file)
            continue
        _write_all(file, part)
        if sums_up:
            crc = zlib.crc32(part, crc)
        yield len(part)
    if plan.trailer is not None:
        _write_all(file, memoryview(plan.trailer(crc)))
        yield plan.trailer_bytes


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

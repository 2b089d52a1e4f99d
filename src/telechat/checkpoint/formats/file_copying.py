"""Bytes copied from file to file by the system, without passing through this process where it can do so.

Also tells the system to begin writing to the disk at once: by itself it waits until much has gathered, and
whoever closes the file waits for all of it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from io import FileIO

from telechat.checkpoint.formats.lazy import Run
from telechat.errors import CheckpointError

_STEP_BYTES = 16 << 20
_READ_BYTES = 1 << 20
# The system cannot copy between these two files by itself.
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def copy_run(run: Run, target: FileIO) -> Iterator[int]:
    """Copy to where the target stands; yields bytes as they are done.

    Raises:
        CheckpointError: the source ends early.
    """
    with run.path.open("rb", buffering=0) as source:
        at, left = run.offset, run.num_bytes
        by_system = hasattr(os, "copy_file_range")
        while left:
            step = min(left, _STEP_BYTES if by_system else _READ_BYTES)
            if by_system:
                try:
                    num_bytes = os.copy_file_range(source.fileno(), target.fileno(), step, at)
                except OSError as error:
                    if error.errno not in _CANNOT:
                        raise
                    by_system = False
                    continue
            else:
                num_bytes = _copy(source, target, at, step)
            if not num_bytes:
                raise CheckpointError(
                    f"{run.path.name} ends {left} bytes early.", hint="Copy or download it again."
                )
            at, left = at + num_bytes, left - num_bytes
            yield num_bytes


def _copy(source: FileIO, target: FileIO, at: int, step: int) -> int:
    """Through memory."""
    source.seek(at)
    content = memoryview(source.read(step))
    written = 0
    while written < len(content):
        written += target.write(content[written:])
    return written


def begin_writeback(file: FileIO, start: int, num_bytes: int) -> None:
    """Have a stretch of a file go to the disk in the background."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start, num_bytes, os.POSIX_FADV_DONTNEED)

"""The access log: one JSON object per line, written by a thread of its own.

A log that cannot be written (full disk, slow disk) costs lines, never answers: lines are handed over without
waiting, and dropped and counted when the disk does not take them. Knows nothing of what a line says.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from telechat.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 64 * 1024 * 1024
NUM_OLD_FILES = 5
MAX_WAITING_LINES = 10_000
_SECONDS_BETWEEN_COMPLAINTS = 60.0
_CLOSING_SECONDS = 5.0

# Texts that take time to make are made by the writing thread.
LateText = Callable[[], str]


class AccessLog:
    """Writes lines to a file that is rotated by size, or to stderr.

    Args:
        path: the file; rotated to `path.1` (the newest) up to `path.N`. None is stderr.
        max_file_bytes: a file that a line would make larger than this is rotated first.
        num_old_files: rotated files that are kept.

    Raises:
        ConfigError: the file cannot be opened.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        num_old_files: int = NUM_OLD_FILES,
    ) -> None:
        self._sink = _Stderr() if path is None else _RotatingFile(path, max_file_bytes, num_old_files)
        self._lines: queue.Queue[tuple[Mapping[str, Any], Sequence[LateText]] | None] = queue.Queue(
            MAX_WAITING_LINES
        )
        self._num_lost = 0
        self._complained_at = -_SECONDS_BETWEEN_COMPLAINTS
        self._thread = threading.Thread(target=self._write_all, name="telechat-access-log", daemon=True)
        self._thread.start()

    @property
    def num_lost(self) -> int:
        """Lines that were not written."""
        return self._num_lost

    def put(self, line: Mapping[str, Any], prompts: Sequence[LateText] = ()) -> None:
        """Hand over a line; never waits and never fails. `prompts` become its field `prompts`."""
        try:
            self._lines.put_nowait((line, prompts))
        except queue.Full:
            self._lose("lines come faster than they can be written")

    def close(self) -> None:
        """Write what waits, for some seconds at most."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_CLOSING_SECONDS)
            self._thread.join(_CLOSING_SECONDS)

    def _write_all(self) -> None:
        while True:
            entry = self._lines.get()
            if entry is None:
                self._sink.close()
                return
            try:
                self._sink.write(_encoded(*entry))
            except Exception as error:  # noqa: BLE001 - the boundary of the thread: one line must not end the log
                self._lose(str(error))

    def _lose(self, why: str) -> None:
        self._num_lost += 1
        now = time.monotonic()
        if now - self._complained_at >= _SECONDS_BETWEEN_COMPLAINTS:
            self._complained_at = now
            logger.warning("the access log cannot be written: %s (%d lines lost)", why, self._num_lost)


def _encoded(line: Mapping[str, Any], prompts: Sequence[LateText]) -> bytes:
    if prompts:
        line = {**line, "prompts": [prompt() for prompt in prompts]}
    text = json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"
    return text.encode("utf-8", errors="replace")


class _Stderr:
    """Whole lines beside those of the program's own log."""

    def write(self, line: bytes) -> None:
        sys.stderr.write(line.decode("utf-8"))
        sys.stderr.flush()

    def close(self) -> None:
        """Not ours to close."""


class _RotatingFile:
    """A file that grows to a size, then gives way to an empty one."""

    def __init__(self, path: Path, max_bytes: int, num_old: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._num_old = num_old
        self._has_torn_line = False
        try:
            self._handle = self._open()
        except OSError as error:
            raise ConfigError(
                f"The access log {path} cannot be opened: {error.strerror}.",
                hint="Name another file with --access-log.",
            ) from error

    def _open(self) -> int:
        # Prompts may stand in it, so only its owner may read it.
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, line: bytes) -> None:
        """Append a line; after one that was written in part only, on a line of its own."""
        if self._has_torn_line:
            line = b"\n" + line
        if os.fstat(self._handle).st_size + len(line) > self._max_bytes:
            self._rotate()
        num_written = 0
        while num_written < len(line):
            num_written += os.write(self._handle, line[num_written:])
            self._has_torn_line = num_written < len(line)

    def _rotate(self) -> None:
        """path.1 becomes path.2 and so on; the oldest goes. Only files are rotated, not devices or pipes."""
        if not self._path.is_file():
            return
        for number in range(self._num_old, 0, -1):
            newer = self._path if number == 1 else self._numbered(number - 1)
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, self._numbered(number))
        if not self._num_old:
            self._path.unlink()
        fresh = self._open()
        os.close(self._handle)
        self._handle = fresh

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        os.close(self._handle)

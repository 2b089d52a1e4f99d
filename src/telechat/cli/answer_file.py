"""Rows of prompts in, rows of answers out, and where an interrupted run goes on.

The output holds the input's rows in order, each with its answer, so its length says how much is done. Knows
JSON Lines; nothing of models.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from telechat.errors import UsageError

PROMPT_KEY = "input"
ANSWER_KEY = "output"
# Waiting for the disk after every row would take longer than a small model's answers do.
_SYNC_SECONDS = 1.0

Row = dict[str, Any]


def read_prompts(path: Path) -> list[Row]:
    """The rows of a JSON Lines file, each with a non-empty text `input`; UsageError names the line."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"Cannot read {path}: {reason}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path} line {number} is not JSON: {error.msg}.") from error
        prompt = row.get(PROMPT_KEY) if isinstance(row, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise UsageError(
                f'{path} line {number} has no text under "{PROMPT_KEY}".',
                hint='Write rows like {"input": "你好"}.',
            )
        rows.append(row)
    if not rows:
        raise UsageError(f"{path} holds no rows.", hint='Write rows like {"input": "你好"}.')
    return rows


class AnswerFile:
    """The output, opened to go on behind the rows it already holds.

    Args:
        path: created when missing, in a folder that exists.
        prompts: all rows of the input; the output's rows must be answers to the first of them.

    Raises:
        UsageError: the file holds something else.
    """

    def __init__(self, path: Path, prompts: list[Row]) -> None:
        self.path = path
        self.num_done, end = _answered(path, prompts)
        self._file = path.open("r+b" if path.exists() else "w+b")
        # An interrupted write leaves half a line; it is computed again.
        self._synced_at = time.monotonic()
        self._file.truncate(end)
        self._file.seek(end)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows; they are on the disk within a second's writing, and when the file is closed."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        self._file.write("".join(lines).encode("utf-8", "backslashreplace"))
        self._file.flush()
        self.num_done += len(lines)
        if time.monotonic() - self._synced_at > _SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sync()
        self._file.close()


def _answered(path: Path, prompts: list[Row]) -> tuple[int, int]:
    """How many rows of an output are answers to `prompts`, and at which byte they end."""
    if not path.exists():
        return 0, 0
    count, end = 0, 0
    for line in path.read_bytes().splitlines(keepends=True):
        row = _parse(line)
        if row is None:
            break
        if (
            count >= len(prompts)
            or row.get(PROMPT_KEY) != prompts[count][PROMPT_KEY]
            or ANSWER_KEY not in row
        ):
            raise UsageError(
                f"{path} row {count + 1} does not answer row {count + 1} of the input.",
                hint="Name another --output, or delete that file.",
            )
        count += 1
        end += len(line)
    if path.stat().st_size > end and count == 0:
        raise UsageError(
            f"{path} holds something other than answers.", hint="Name another --output, or delete that file."
        )
    return count, end


def _parse(line: bytes) -> Row | None:
    """A whole row, or None for half of one."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None

"""OpenAI's batch files: rows of requests in, rows of answers out, and which requests are answered already.

Rows are told apart by `custom_id`, so answers may be written in any order; what an interrupted run has
written is kept, and only the rest is asked again. Knows JSON Lines and OpenAI's fields; nothing of how a row
is answered.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from telechat.errors import UsageError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
# Waiting for the disk after every row would take longer than a small model's answers do.
_SYNC_SECONDS = 1.0
_HINT = 'Write rows like {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {…}}.'


@dataclass(frozen=True)
class BatchRow:
    """One request.

    Attributes:
        custom_id: names it in both files.
        url: one of URLS.
        body: of the request.
        problem: why it cannot be asked; None when it can.
    """

    custom_id: str
    url: str
    body: Mapping[str, Any]
    problem: str | None = None


def is_batch_file(path: Path) -> bool:
    """Whether the first row of a file is a request with a `custom_id`. A file that cannot be read is none."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = next((line for line in file if line.strip()), "")
        row = json.loads(line)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "custom_id" in row and ("url" in row or "body" in row)


def read_batch(path: Path) -> list[BatchRow]:
    """The rows of a batch file. A row that cannot be asked has its problem with it.

    Raises:
        UsageError: a line that is no row, so that its answer could not be named; a `custom_id` given twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"Cannot read {path}: {reason}.") from error
    rows: dict[str, BatchRow] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _read_row(line, f"{path} line {number}")
        if row.custom_id in rows:
            raise UsageError(
                f"{path} line {number} has the custom_id {row.custom_id!r} of an earlier line.",
                hint="Answers are named by it; give each row its own.",
            )
        rows[row.custom_id] = row
    return list(rows.values())


def _read_row(line: str, place: str) -> BatchRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not JSON.", hint=_HINT) from error
    custom_id = row.get("custom_id") if isinstance(row, dict) else None
    if not isinstance(custom_id, str) or not custom_id:
        raise UsageError(f"{place} has no text under custom_id.", hint=_HINT)
    url, body = row.get("url"), row.get("body")
    problem = None
    if row.get("method", "POST") != "POST":
        problem = f"method is {row['method']!r}; it must be POST."
    elif url not in URLS:
        problem = f"url is {url!r}; it must be one of {', '.join(URLS)}."
    elif not isinstance(body, dict):
        problem = "body is missing or no object."
    elif body.get("stream"):
        problem = "stream is true; answers of a batch are whole."
    return BatchRow(custom_id, str(url), body if isinstance(body, dict) else {}, problem)


def answered(row: BatchRow, status: int, request_id: str, body: Any) -> dict[str, Any]:
    """The output row of a request that got an answer, be it a refusal."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": _new_id(), "custom_id": row.custom_id, "response": response, "error": None}


def failed(row: BatchRow, code: str, message: str) -> dict[str, Any]:
    """The output row of a request that got none."""
    error = {"code": code, "message": message}
    return {"id": _new_id(), "custom_id": row.custom_id, "response": None, "error": error}


def _new_id() -> str:
    return f"batch_req_{secrets.token_hex(12)}"


def is_final(answer: Mapping[str, Any]) -> bool:
    """Asking again would give the same: an answer, a refusal, or a row that cannot be asked."""
    response = answer.get("response")
    if isinstance(response, dict):
        status = response.get("status_code")
        return isinstance(status, int) and status < 500 and status != 429
    error = answer.get("error")
    return isinstance(error, dict) and error.get("code") == "invalid_request"


class BatchOutput:
    """The output file, opened to go on with the rows that it does not answer yet.

    Args:
        path: made when missing, in a folder that exists.
        rows: all requests; the file may hold answers to these only.

    Attributes:
        num_done: rows with a final answer in the file.
        num_refused: those of them that were refused.

    Raises:
        UsageError: the file holds something else, or another run writes it at the moment.
    """

    def __init__(self, path: Path, rows: Sequence[BatchRow]) -> None:
        self.path = path
        self._order = {row.custom_id: number for number, row in enumerate(rows)}
        # Appending leaves what is there alone whatever happens.
        self._file: IO[bytes] = path.open("a+b")
        try:
            _lock(self._file, path)
            self._done: dict[str, bytes] = {}
            self.num_refused = 0
            self._read()
        except BaseException:
            self._file.close()
            raise
        self._synced_at = time.monotonic()

    @property
    def num_done(self) -> int:
        """Rows with a final answer."""
        return len(self._done)

    def missing(self, rows: Iterable[BatchRow]) -> list[BatchRow]:
        """The rows without a final answer."""
        return [row for row in rows if row.custom_id not in self._done]

    def write(self, answer: Mapping[str, Any]) -> None:
        """Append an answer; it is on the disk within a second's writing, and when the file is closed."""
        line = json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        self._file.write(line)
        self._file.flush()
        self._note(answer, line)
        if time.monotonic() - self._synced_at > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced_at = time.monotonic()

    def sort(self) -> None:
        """Bring the answers into the order of their requests, once all are there."""
        names = list(self._done)
        if names != sorted(names, key=self._order.__getitem__):
            self._rewrite()

    def _note(self, answer: Mapping[str, Any], line: bytes) -> None:
        if not is_final(answer):
            return
        self._done[answer["custom_id"]] = line
        response = answer.get("response")
        self.num_refused += response is None or response["status_code"] != 200

    def _read(self) -> None:
        """Take over final answers; half a line and rows that failed are dropped and asked again."""
        self._file.seek(0)
        size = 0
        for number, line in enumerate(self._file, 1):
            answer = _parse(line)
            if answer is None and line.endswith(b"\n"):
                raise UsageError(
                    f"{self.path} line {number} is no answer to a batch file.", hint="Name another --output."
                )
            if answer is not None:
                if answer["custom_id"] not in self._order:
                    raise UsageError(
                        f"{self.path} line {number} answers {answer['custom_id']!r}, which the input lacks.",
                        hint="Name another --output, or delete that file.",
                    )
                self._note(answer, line)
            size += len(line)
        if sum(map(len, self._done.values())) != size:
            self._rewrite()

    def _rewrite(self) -> None:
        """The final answers in the order of their requests, in place of the file, all at once."""
        new = self.path.with_name(f".{self.path.name}.new")
        with new.open("wb") as file:
            for name in sorted(self._done, key=self._order.__getitem__):
                file.write(self._done[name])
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        os.replace(new, self.path)
        self._file = self.path.open("a+b")
        _lock(self._file, self.path)

    def __enter__(self) -> BatchOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """An answer, or None for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = line.endswith(b"\n") and isinstance(row, dict) and isinstance(row.get("custom_id"), str)
    return row if whole and "response" in row and "error" in row else None


def _lock(file: IO[bytes], path: Path) -> None:
    """Keep a second run from writing the same file; Windows, which has no flock, trusts its user."""
    if os.name == "nt":
        return
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UsageError(
            f"Another run is writing {path}.", hint="Wait for it, or name another --output."
        ) from error

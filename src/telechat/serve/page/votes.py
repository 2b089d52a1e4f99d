"""Votes on answers, kept on the page's machine as rows that preference training reads.

Two files in one folder, both in TRL's conversational formats, one JSON object a line:

- `votes.jsonl`, unpaired preference (KTO): `prompt`, `completion`, `label`;
- `pairs.jsonl`, preference (DPO, ORPO, SimPO): `prompt`, `chosen`, `rejected`, for every liked and every
  disliked answer to the same messages.

Each answer has at most one vote: a changed vote replaces its rows, a withdrawn one removes them. Knows
nothing of HTTP; who may vote is decided before.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from telechat.errors import ConfigError

VOTES_NAME = "votes.jsonl"
PAIRS_NAME = "pairs.jsonl"
MAX_FILE_BYTES = 512 * 1024 * 1024
"""A file past this takes no more rows: votes must not fill the disk."""
LOCK_SECONDS = 10.0

_BINARY = getattr(os, "O_BINARY", 0)  # on Windows only: no translation of line ends
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_ID = re.compile(r"[0-9a-f]{32}")
_ROLES = ("system", "user", "assistant")
_LABELS = {"up": True, "down": False, None: None}

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Vote:
    """What somebody thinks of one answer.

    Attributes:
        id: of the answer, 32 hex digits, chosen by the browser.
        label: True for good, False for bad, None to withdraw the vote.
        prompt: the messages the model was given, as `{"role", "content"}`, the last one the user's.
        answer: what it wrote.
        model: its name.
    """

    id: str
    label: bool | None
    prompt: tuple[dict[str, str], ...]
    answer: str
    model: str

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Vote:
        """The vote in a request's body; ValueError, with a message for the sender, when it is none."""
        vote = body.get("vote")
        if not isinstance(vote, str | None) or vote not in _LABELS:
            raise ValueError(f"vote is {vote!r}; it must be 'up', 'down' or null.")
        identifier = body.get("id")
        if not isinstance(identifier, str) or not _ID.fullmatch(identifier):
            raise ValueError("id must be 32 hexadecimal digits.")
        answer, model = body.get("answer"), body.get("model")
        if not isinstance(answer, str) or not answer or not isinstance(model, str):
            raise ValueError("answer must be a text that is not empty, and model a text.")
        return cls(
            id=identifier,
            label=_LABELS[vote],
            prompt=_messages(body.get("messages")),
            answer=answer,
            model=model,
        )


def _messages(value: object) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages must be a list that is not empty.")
    messages = []
    for number, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in _ROLES or not isinstance(content, str):
            raise ValueError(
                f"messages[{number}] must have a role of {', '.join(_ROLES)} and a text content."
            )
        messages.append({"role": str(role), "content": content})
    if messages[-1]["role"] != "user":
        raise ValueError("the last message must be the user's.")
    return tuple(messages)


class VoteFolder:
    """The folder with both files; several processes may write to it."""

    def __init__(self, path: Path) -> None:
        """Make the folder, readable by its owner only; ConfigError when nothing can be written there."""
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            writable = os.access(path, os.W_OK | os.X_OK)
        except OSError as error:
            raise _unusable(path, error.strerror or str(error)) from error
        if not writable:
            raise _unusable(path, "no permission")
        self.votes_path = path / VOTES_NAME
        self.pairs_path = path / PAIRS_NAME
        self._lock = FileLock(path / ".lock", timeout=LOCK_SECONDS)

    def record(self, vote: Vote) -> None:
        """Keep `vote` in place of an earlier one of the same answer.

        When this returns the rows are on the disk. After an OSError (disk full, lock taken for ten seconds)
        no half row is left, and the same vote may be given again.
        """
        with self._lock:
            _remove_rows(self.votes_path, vote.id, lambda row: row.get("id") == vote.id)
            _remove_rows(
                self.pairs_path,
                vote.id,
                lambda row: vote.id in (row.get("chosen_id"), row.get("rejected_id")),
            )
            if vote.label is None:
                return
            pairs = [_pair(vote, other) for other in self._opposite(vote)]
            _append_rows(self.votes_path, [_vote_row(vote)])
            _append_rows(self.pairs_path, pairs)

    def _opposite(self, vote: Vote) -> list[Row]:
        """Rows of the other opinion about answers to the same messages."""
        # Every row begins with its prompt, written by one encoder: the same messages are the same bytes.
        start = _line({"prompt": list(vote.prompt)}).rstrip(b"}\n")
        rows = [json.loads(line) for line in _lines(self.votes_path) if line.startswith(start)]
        return [
            row
            for row in rows
            if row["label"] is (not vote.label) and row["completion"] != _completion(vote.answer)
        ]


def _unusable(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"Votes cannot be kept in {path}: {reason}.", hint="Name another folder with --feedback-folder."
    )


def _completion(answer: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer}]


def _vote_row(vote: Vote) -> Row:
    return {
        "prompt": list(vote.prompt),
        "completion": _completion(vote.answer),
        "label": vote.label,
        "id": vote.id,
        "model": vote.model,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _pair(vote: Vote, other: Row) -> Row:
    ours, theirs = _completion(vote.answer), other["completion"]
    chosen, rejected = (ours, theirs) if vote.label else (theirs, ours)
    chosen_id, rejected_id = (vote.id, other["id"]) if vote.label else (other["id"], vote.id)
    return {
        "prompt": list(vote.prompt),
        "chosen": chosen,
        "rejected": rejected,
        "chosen_id": chosen_id,
        "rejected_id": rejected_id,
    }


def _line(row: Row) -> bytes:
    # A browser may send half a surrogate pair, which UTF-8 cannot hold: it becomes a question mark. What some
    # readers take for a line end becomes an escape.
    text = _LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(row, ensure_ascii=False))
    return text.encode("utf-8", errors="replace") + b"\n"


def _lines(path: Path) -> list[bytes]:
    """The complete rows of a file, each with its line end; none when there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def _remove_rows(path: Path, identifier: str, is_meant: Callable[[Row], bool]) -> None:
    lines = _lines(path)
    needle = identifier.encode()
    kept = [line for line in lines if needle not in line or not is_meant(json.loads(line))]
    if len(kept) == len(lines):
        return
    # In whole or not at all: a reader or a crash never meets half a file.
    draft = path.with_suffix(".draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _append_rows(path: Path, rows: list[Row]) -> None:
    if not rows:
        return
    content = b"".join(_line(row) for row in rows)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, 0o600)
    try:
        size = _cut_unfinished_row(descriptor)
        if size + len(content) > MAX_FILE_BYTES:
            raise OSError(f"{path.name} has reached its limit of {MAX_FILE_BYTES} bytes")
        try:
            if os.write(descriptor, content) != len(content):
                raise OSError(f"the disk took only a part of a row of {path.name}")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _cut_unfinished_row(descriptor: int) -> int:
    """Drop what a crash left behind the last complete row; its voter never heard that it was kept.

    Returns:
        The size in bytes.
    """
    end = os.lseek(descriptor, 0, os.SEEK_END)
    keep = end
    while keep > 0:
        start = max(0, keep - 65536)
        os.lseek(descriptor, start, os.SEEK_SET)
        found = os.read(descriptor, keep - start).rfind(b"\n")
        if found >= 0:
            keep = start + found + 1
            break
        keep = start
    if keep != end:
        os.ftruncate(descriptor, keep)
    return keep

"""Conversations as token ids with the tokens to learn marked: the assistant's answers and their `<_end>`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from telechat.errors import ConfigError


class ChatEncoder(Protocol):
    """The part of a tokenizer that samples need."""

    def encode_with_loss_mask(self, messages: Any, tools: Any = None) -> tuple[list[int], list[bool]]: ...


@dataclass(frozen=True)
class SampleSet:
    """All samples of a run, end to end.

    Attributes:
        ids: int32 [total tokens].
        learnt: bool [total tokens]; True where the token is a target.
        offsets: int64 [samples + 1]; sample i is ids[offsets[i]:offsets[i + 1]].
        dropped: rows left out, by reason.
    """

    ids: npt.NDArray[np.int32]
    learnt: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> list[int]:
        """Tokens per sample."""
        lengths: list[int] = np.diff(self.offsets).tolist()
        return lengths


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file; errors name file and line."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{path} line {number} is not JSON: {error.msg}.") from error
            if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
                raise ConfigError(f"{path} line {number} has no list of messages.")
            yield row


def encode_rows(rows: Iterable[dict[str, Any]], tokenizer: ChatEncoder, *, max_length: int) -> SampleSet:
    """Encode conversations; rows that are too long or teach nothing are dropped and counted.

    Raises:
        ConfigError: no row is left.
    """
    ids: list[npt.NDArray[np.int32]] = []
    learnt: list[npt.NDArray[np.bool_]] = []
    dropped: Counter[str] = Counter()
    for row in rows:
        tokens, mask = tokenizer.encode_with_loss_mask(row["messages"], tools=row.get("tools"))
        marks = np.array(mask, dtype=np.bool_)
        if len(tokens) > max_length:
            dropped["longer than data.max_length"] += 1
        elif not marks[1:].any():
            dropped["nothing to learn"] += 1
        else:
            ids.append(np.array(tokens, dtype=np.int32))
            learnt.append(marks)
    if not ids:
        raise ConfigError(
            f"No training row is usable ({dict(dropped) or 'the file is empty'}).",
            hint="Rows need an assistant message and at most data.max_length tokens.",
        )
    offsets = np.concatenate([[0], np.cumsum([len(sample) for sample in ids])]).astype(np.int64)
    return SampleSet(np.concatenate(ids), np.concatenate(learnt), offsets, dict(dropped))

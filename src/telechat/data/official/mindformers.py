"""The preparation of training rows by MindFormers' `telechat_preprocess.py`, to the same numbers.

Rows `{"input", "output"}` are shuffled, split into questions and answers, and packed into rows of
`max_length + 1` ids; labels are -100 but for answers. Its oddities are kept: the start ids of a row's
conversations stand together at its beginning, and the last row, if not full, is left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from telechat.errors import ConfigError

IGNORED = -100
_USER, _BOT, _END, _PAD = "<_user>", "<_bot>", "<_end>", "<_pad>"


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]: ...
    def token_to_id(self, token: str) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How rows are made.

    Attributes:
        max_length: context of the model in tokens; rows have one more.
        seed: of the shuffle.
        start_token: put before each conversation; None for TeleChat1.
        pad_id: written where a row is filled up; by default the tokenizer's.
    """

    max_length: int = 8192
    seed: int = 2024
    start_token: str | None = "<_start>"
    pad_id: int | None = None


@dataclass(frozen=True)
class PackedRow:
    """Ids and labels int32 [max_length + 1], and how many ids at the beginning fill the row up."""

    ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    num_pads: int


def pack_rows(rows: Sequence[tuple[str, str]], tokenizer: Encoder, settings: PackSettings) -> list[PackedRow]:
    """Rows of (input, output) as the official script packs them.

    Raises:
        ConfigError: the tokenizer lacks a token that conversations are written with.
    """
    packer = _Packer(tokenizer, settings)
    texts = [packer.text_of(question, answer) for question, answer in rows]
    random.Random(settings.seed).shuffle(texts)
    full = settings.max_length + 1
    packed: list[PackedRow] = []
    held: list[tuple[list[int], list[int], int]] = []
    num_tokens = 0
    for text in texts:
        sample = packer.encode(text)
        size = len(sample[0])
        if num_tokens + size < full:
            held.append(sample)
            num_tokens += size
            continue
        if held:
            packed.append(packer.row(held, full))
        held, num_tokens = ([sample], size) if size < full else ([], 0)
    return packed


class _Packer:
    def __init__(self, tokenizer: Encoder, settings: PackSettings) -> None:
        self._tokenizer = tokenizer
        self._start_token = settings.start_token
        self._user, self._bot, self._end = (self._id(name) for name in (_USER, _BOT, _END))
        self._start = self._id(settings.start_token) if settings.start_token else None
        self._pad = self._id(_PAD) if settings.pad_id is None else settings.pad_id

    def _id(self, name: str) -> int:
        found = self._tokenizer.token_to_id(name)
        if found is None:
            raise ConfigError(f"The tokenizer has no token {name}.", hint="Name the model's own tokenizer.")
        return found

    def text_of(self, question: str, answer: str) -> str:
        """A row as one text, turns closed."""
        text = question if question.startswith(_USER) else _USER + question
        if _BOT in text:
            pieces = text.split(_USER)[1:]
            turns = [_USER + piece + (_END if _BOT in piece else _BOT) for piece in pieces]
            text = "".join(turns) + answer + _END
        else:
            text = text + _BOT + answer + _END
        return (self._start_token or "") + text

    def encode(self, text: str) -> tuple[list[int], list[int], int]:
        """(ids, labels, start ids) of a text; the start ids are not among the others yet."""
        ids: list[int] = []
        labels: list[int] = []
        parts = text.split(self._start_token)[1:] if self._start_token else [text]
        for part in parts:
            questions = [piece.split(_BOT)[0] for piece in part.split(_USER)[1:]]
            answers = [piece.split(_BOT)[-1] for piece in part.split(_END)[:-1]]
            for question, answer in zip(questions, answers, strict=False):
                asked = [self._user, *self._tokenizer.encode(question, parse_special=True), self._bot]
                said = [*self._tokenizer.encode(answer, parse_special=True), self._end]
                ids += asked + said
                labels += [IGNORED] * len(asked) + said
        num_starts = len(parts) if self._start is not None else 0
        return ids + [self._start or 0] * num_starts, labels + [IGNORED] * num_starts, num_starts

    def row(self, held: Sequence[tuple[list[int], list[int], int]], full: int) -> PackedRow:
        """A finished row: padding, start ids, then all conversations."""
        num_starts = sum(starts for _, _, starts in held)
        ids = [self._start or 0] * num_starts
        labels = [IGNORED] * num_starts
        for sample_ids, sample_labels, starts in held:
            size = len(sample_ids) - starts
            ids += sample_ids[:size]
            labels += sample_labels[:size]
        num_pads = full - len(ids)
        return PackedRow(
            np.array([self._pad] * num_pads + ids, dtype=np.int32),
            np.array([IGNORED] * num_pads + labels, dtype=np.int32),
            num_pads,
        )

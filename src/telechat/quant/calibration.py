"""The rows that a method of quantisation looks at: conversations and texts as token ids.

Conversations of every row format that training reads are written in the model's chat format. Knows nothing of
models.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from telechat.data.encoding import encode_record, preference_ids
from telechat.data.recognise import recognise_row
from telechat.data.records import Preference
from telechat.data.rows import BadRow, Row, RowProblem, read_rows
from telechat.data.sequences import Encoded
from telechat.errors import ConfigError, PromptError
from telechat.tokenizer import Tokenizer

DEFAULT_ROWS = 128
DEFAULT_LENGTH = 2048
# A text with its control tokens spelled out, as in the calibration files of other tools.
PRETOKENIZED = "inputs_pretokenized"
_PLAIN_SUFFIX = ".txt"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """Token ids of the rows, each at least one token."""

    rows: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigError(
                "There are no calibration rows.", hint="Name files of conversations or texts: --calib FILE."
            )

    @property
    def num_tokens(self) -> int:
        """All rows together."""
        return sum(len(row) for row in self.rows)

    @property
    def digest(self) -> str:
        """Tells calibrations apart."""
        return hashlib.sha256(repr(self.rows).encode()).hexdigest()

    def check_fits(self, vocab_size: int) -> None:
        """Raise ConfigError for a token that the model does not have."""
        highest = max(max(row) for row in self.rows)
        if highest >= vocab_size or min(min(row) for row in self.rows) < 0:
            raise ConfigError(
                f"The calibration rows have the token {highest}; the model has {vocab_size}.",
                hint="Use the tokenizer of this model.",
            )

    def warn_if_few(self, num_inputs: int) -> None:
        """Say so where the rows cannot tell the inputs of the widest layer apart."""
        if self.num_tokens < num_inputs:
            log.warning(
                "%d calibration tokens for layers of up to %d inputs are too few to tell them apart: errors "
                "will be larger than need be. Give 128 rows or more of real conversations",
                self.num_tokens,
                num_inputs,
            )


def from_files(
    files: Sequence[str | Path],
    tokenizer: Tokenizer,
    *,
    num_rows: int = DEFAULT_ROWS,
    length: int = DEFAULT_LENGTH,
) -> Calibration:
    """The first rows of files, taken from each in turn.

    Args:
        files: JSON Lines or JSON arrays of any row format of training, or with `inputs_pretokenized`; or
            `.txt`, of which each line is a text.
        num_rows: how many rows at most.
        length: longer rows are cut to so many tokens.

    Raises:
        ConfigError: a file that cannot be read, a row that is malformed, no rows at all.
    """
    for name, value in (("calib_rows", num_rows), ("calib_length", length)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")
    marked = islice(read_marked(files, tokenizer, length=length), num_rows)
    return Calibration(tuple(tuple(row.ids) for row in marked))


def read_marked(
    files: Sequence[str | Path], tokenizer: Tokenizer, *, length: int = DEFAULT_LENGTH
) -> Iterator[Encoded]:
    """All rows of files, taken from each in turn; marked is what an assistant says, or all of a text.

    Raises:
        ConfigError: as `from_files`.
    """
    readers = [_file_rows(Path(file), tokenizer) for file in files]
    for row in chain.from_iterable(zip_longest(*readers)):
        if row is not None and row.ids:
            yield Encoded(row.ids[:length], row.learnt[:length])


def from_examples(examples: Sequence[Any], *, length: int = DEFAULT_LENGTH) -> Calibration:
    """From token ids: lists, tensors or the dictionaries with `input_ids` that tokenizers give.

    Raises:
        ConfigError: anything else, or no rows.
    """
    rows = []
    for number, example in enumerate(examples, 1):
        ids = example["input_ids"] if isinstance(example, Mapping) else example
        ids = ids.reshape(-1).tolist() if hasattr(ids, "reshape") else ids
        if not isinstance(ids, Sequence) or not ids or not all(type(token) is int for token in ids):
            raise ConfigError(f"Example {number} holds no list of token ids.")
        rows.append(tuple(ids[:length]))
    return Calibration(tuple(rows))


def from_texts(texts: Sequence[Any], tokenizer: Tokenizer, *, length: int = DEFAULT_LENGTH) -> Calibration:
    """From texts, in which control tokens may be spelled out, and conversations, lists of messages.

    Raises:
        ConfigError: anything else, or no rows.
    """
    rows = []
    for number, text in enumerate(texts, 1):
        try:
            ids = (
                tokenizer.encode(text, parse_special=True)
                if isinstance(text, str)
                else tokenizer.apply_chat_template(text, add_generation_prompt=False)
            )
        except PromptError as error:
            raise ConfigError(f"Text {number}: {error.message}") from error
        if not ids:
            raise ConfigError(f"Text {number} is empty.")
        rows.append(tuple(ids[:length]))
    return Calibration(tuple(rows))


def _file_rows(path: Path, tokenizer: Tokenizer) -> Iterator[Encoded]:
    if path.suffix == _PLAIN_SUFFIX:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Cannot read {path}: {error}.") from error
        yield from (_text(tokenizer.encode(line)) for line in lines if line.strip())
        return
    for row in read_rows(path):
        if isinstance(row, BadRow):
            raise ConfigError(f"Calibration: {row}")
        try:
            yield _encode(row, tokenizer)
        except (RowProblem, PromptError) as error:
            raise ConfigError(f"Calibration: {path} line {row.line}: {error}") from error


def _encode(row: Row, tokenizer: Tokenizer) -> Encoded:
    text = row.value.get(PRETOKENIZED)
    if isinstance(text, str):
        return _text(tokenizer.encode(text, parse_special=True))
    recognised = recognise_row(row.value)
    if recognised is None:
        raise RowProblem(f"it has the fields {', '.join(row.value) or '(none)'}, which no row format has.")
    record = recognised.family.read(row.value)
    if isinstance(record, Preference):
        return preference_ids(record, tokenizer)[0]
    return encode_record(record, tokenizer, "answers")


def _text(ids: Sequence[int]) -> Encoded:
    return Encoded(ids, [True] * len(ids))

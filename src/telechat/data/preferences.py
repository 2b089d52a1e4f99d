"""The entry to preference data: pairs of answers, or judged answers, as tokens with their books.

`load_preferences` reads what `families.preference` describes; nothing is packed, since the losses compare
whole answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from telechat.data.accounting import Accounting, too_long
from telechat.data.encoding import preference_ids
from telechat.data.mixing import copies_per_row, used_sequences
from telechat.data.origins import Origins, OriginsBuilder
from telechat.data.reading import Books, OnBadRow, RecordReader
from telechat.data.records import Preference
from telechat.data.rows import RowProblem
from telechat.data.sequences import Encoded, SequenceBuilder, Sequences
from telechat.data.sources import Source, read_sources
from telechat.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreferenceSet:
    """All preference rows of a run; `len` counts pairs, or judged answers.

    Attributes:
        sequences: prompt and answer, the answer's tokens marked as learnt. Of pair i, 2 * i is the chosen one
            and 2 * i + 1 the rejected one; without pairs, i is judged answer i.
        prompt_lengths: int64 [rows], tokens before the answer (`<_bot>` is the last of them).
        labels: bool [rows], whether a judged answer is good; None for pairs.
        accounting: where every row and token went.
        origins: where each row stands in the files.
    """

    sequences: Sequences
    prompt_lengths: npt.NDArray[np.int64]
    labels: npt.NDArray[np.bool_] | None
    accounting: Accounting
    origins: Origins

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def is_paired(self) -> bool:
        """Rows are pairs."""
        return self.labels is None

    def mismatched(self, *, max_length: int, seed: int) -> Sequences:
        """For each judged answer its prompt with some other row's answer, for KTO's baseline.

        Args:
            max_length: longer sequences are cut at the end.
            seed: of who gets whose answer; no row gets its own, unless it is the only one.
        """
        assert not self.is_paired, "only judged answers have mismatched ones"
        ring = np.random.default_rng(seed).permutation(len(self))
        others = np.empty_like(ring)
        others[ring] = np.roll(ring, 1)
        builder = SequenceBuilder()
        for row, other in enumerate(others.tolist()):
            prompt = self.sequences.ids[self.sequences.span(row)][: int(self.prompt_lengths[row])]
            answer = self.sequences.span(other)
            answer = slice(answer.start + int(self.prompt_lengths[other]), answer.stop)
            ids = [*prompt.tolist(), *self.sequences.ids[answer].tolist()]
            learnt = [False] * len(prompt) + self.sequences.learnt[answer].tolist()
            builder.add(Encoded(ids[:max_length], learnt[:max_length]))
        return builder.finish()


def load_preferences(
    sources: str | Path | Sequence[str | Path] | Mapping[str, float],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    paired: bool,
    on_bad_row: OnBadRow = "stop",
    seed: int = 1234,
) -> PreferenceSet:
    """Read files of preference rows, the page's `pairs.jsonl` and `votes.jsonl` among them.

    Args:
        sources, tokenizer, on_bad_row, seed: as `dataset.load_samples`.
        max_length: longest prompt with answer; rows over it are dropped by name, pairs as a whole.
        paired: for losses that compare two answers (DPO, ORPO, SimPO). False gives judged answers (KTO); a
            pair then counts as a good and a bad one.

    Raises:
        ConfigError: as `dataset.load_samples`.
    """
    reader = RecordReader(Books(), on_bad_row)
    read = _read(read_sources(sources), reader, tokenizer, max_length, paired, seed)
    used = used_sequences(read.sequences, read.row_starts, read.copies, reader.books)
    if not len(used):
        raise reader.books.nothing_left()
    sequences = read.sequences.take(used)
    accounting = reader.books.close(
        rows_used=int(read.copies.sum()),
        trained=int(sequences.num_targets.sum()),
        in_samples=len(sequences.ids),
        sequences=len(used),
        samples=len(used),
        max_length=max_length,
    )
    log.info("preference data:\n%s", accounting)
    rows = used[::2] if paired else used
    labels = None if paired else np.array(read.labels, dtype=np.bool_)[rows]
    prompt_lengths = np.array(read.prompt_lengths, dtype=np.int64)[rows]
    return PreferenceSet(sequences, prompt_lengths, labels, accounting, read.origins.take(rows))


@dataclass(frozen=True)
class _Answers:
    """What the files hold: `row_starts` is the first sequence of each row, the other lists have one entry a
    sequence; `copies` int64 [rows]."""

    sequences: Sequences
    row_starts: list[int]
    prompt_lengths: list[int]
    labels: list[bool]
    copies: npt.NDArray[np.int64]
    origins: Origins


def _read(
    sources: Sequence[Source],
    reader: RecordReader,
    tokenizer: Tokenizer,
    max_length: int,
    paired: bool,
    seed: int,
) -> _Answers:
    builder, origins = SequenceBuilder(), OriginsBuilder()
    row_starts: list[int] = []
    prompt_lengths: list[int] = []
    labels: list[bool] = []
    copies = []
    for source in sources:
        first_row = len(row_starts)
        for read in reader.read(source):
            try:
                preference = _preference(read.record, paired)
                chosen, rejected, prompt_length = preference_ids(preference, tokenizer)
            except RowProblem as problem:
                reader.reject(read.row, problem)
                continue
            answers = [chosen] if rejected is None else [chosen, rejected]
            num_tokens = sum(len(answer.ids) for answer in answers)
            reader.books.tokens_read += num_tokens
            if max(len(answer.ids) for answer in answers) > max_length:
                reader.books.drop(too_long(max_length), num_tokens)
                continue
            numbers = [builder.add(answer) for answer in answers]
            row_starts.append(numbers[0])
            for _ in answers:
                origins.add([read.row])
            prompt_lengths += [prompt_length] * len(answers)
            labels += [True, False] if preference.label is None else [preference.label]
        num_rows = len(row_starts) - first_row
        copies.append(copies_per_row(num_rows, source.weight, seed=seed, name=source.drawn_as))
    drawn = np.concatenate(copies)
    return _Answers(builder.finish(), row_starts, prompt_lengths, labels, drawn, origins.finish())


def _preference(record: object, paired: bool) -> Preference:
    """The record, which must be a preference with what the loss needs."""
    if not isinstance(record, Preference):
        raise RowProblem("it is no preference row.")
    if paired and record.rejected is None:
        raise RowProblem("it judges one answer; this loss compares two (KTO takes judged answers).")
    return record

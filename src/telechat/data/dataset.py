"""The entry to training data: files of rows in, packed samples with their books out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from telechat.data.accounting import NOTHING_LEARNT, too_long
from telechat.data.encoding_pool import Encoder, open_encoder
from telechat.data.loss_mask import LossOn
from telechat.data.mixing import copies_per_row, used_sequences
from telechat.data.official.samples import load_official
from telechat.data.official.settings import OfficialSettings
from telechat.data.origins import OriginsBuilder
from telechat.data.packing import pack_arrays, pack_best_fit
from telechat.data.reading import Books, OnBadRow, ReadRow, RecordReader
from telechat.data.records import Document, TokenRow
from telechat.data.rows import Row, RowProblem
from telechat.data.samples import SampleSet
from telechat.data.sequences import Encoded, SequenceBuilder
from telechat.data.sources import Source, read_sources
from telechat.data.store import cached_samples, fingerprint
from telechat.errors import ConfigError
from telechat.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Mode = Literal["default", "official"]
PADDING_IN_ROWS = "padding in packed rows"


def load_samples(
    sources: str | Path | Sequence[str | Path] | Mapping[str, float],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    mode: Mode = "default",
    loss_on: LossOn = "answers",
    pack: bool = True,
    on_bad_row: OnBadRow = "stop",
    seed: int = 1234,
    official: OfficialSettings | None = None,
    cache: Path | None = None,
    num_processes: int = 1,
) -> SampleSet:
    """Read files of training rows into samples of at most `max_length` tokens.

    The kind of rows is recognised file by file. The result depends on the files and the arguments alone, and
    holds no order of training: use `SampleSet.lengths` to decide which samples go into which step, then
    `SampleSet.batch` for the arrays. `SampleSet.accounting` prints as a table.

    Args:
        sources: a file; several; files with weights (2.0 uses every row twice, 0.5 half of the rows); or an
            official mixing file `{"path": weight}`.
        tokenizer: of the model that is trained.
        max_length: longest sample. Longer conversations are dropped by name; longer texts are cut.
        mode: `official` does what the original scripts do, faults included, with `official` as its further
            settings; it takes TeleChat1, TeleChat2 or pre-training rows.
        loss_on: which tokens are learnt; `answers` leaves out the `<_user>` and `<_bot>` tokens, which the
            official mask (`turns`) learns as well. `official` mode always has its own.
        pack: fill samples with several conversations that do not see one another; False gives each its own.
        on_bad_row: `stop` at a malformed row, or `skip` and count it.
        seed: for rows drawn by weights (and the official shuffle).
        cache: a folder that keeps the encoded samples. The same files and arguments are then encoded once
            (by one process, while others wait) and memory-mapped afterwards.
        num_processes: processes that encode rows in the default mode; the samples do not depend on it.

    Raises:
        ConfigError: missing, unreadable or empty files, unknown rows, a malformed row (`stop`), and when
            nothing is left or nothing is learnt.
    """
    named = read_sources(sources)
    settings = _Settings(max_length, mode, loss_on, pack, on_bad_row, seed, official or OfficialSettings())

    def load() -> SampleSet:
        if mode == "official":
            return _load_official(named, tokenizer, settings)
        with open_encoder(tokenizer, loss_on, num_processes) as encode:
            return _load(named, tokenizer, settings, encode)

    if cache is None:
        samples = load()
    else:
        samples = cached_samples(cache, fingerprint(named, tokenizer, settings), load)
    log.info("training data:\n%s", samples.accounting)
    return samples


@dataclass(frozen=True)
class _Settings:
    """What besides files and tokenizer decides about the samples; as in `load_samples`."""

    max_length: int
    mode: Mode
    loss_on: LossOn
    pack: bool
    on_bad_row: OnBadRow
    seed: int
    official: OfficialSettings


def _load_official(sources: Sequence[Source], tokenizer: Tokenizer, settings: _Settings) -> SampleSet:
    if settings.loss_on == "all":
        raise ConfigError(
            "The official mode has a loss mask of its own; loss_on is 'all'.",
            hint="For TeleChat1 rows, official.with_loss_mask false learns every token.",
        )
    return load_official(
        sources,
        RecordReader(Books(), settings.on_bad_row),
        tokenizer,
        max_length=settings.max_length,
        seed=settings.seed,
        settings=settings.official,
    )


def _load(sources: Sequence[Source], tokenizer: Tokenizer, settings: _Settings, encode: Encoder) -> SampleSet:
    books = Books()
    reader = RecordReader(books, settings.on_bad_row)
    max_length = settings.max_length
    builder, origins = SequenceBuilder(), OriginsBuilder()
    row_starts: list[int] = []  # number of each usable row's first sequence; rows that were cut have several
    per_source: list[npt.NDArray[np.int64]] = []
    for source in sources:
        first_row = len(row_starts)
        for row, pieces in _read_pieces(encode(reader.read(source)), reader, tokenizer, max_length):
            numbers = [builder.add(piece) for piece in pieces]
            row_starts.append(numbers[0])
            for _ in pieces:
                origins.add([row])
        num_rows = len(row_starts) - first_row
        per_source.append(copies_per_row(num_rows, source.weight, seed=settings.seed, name=source.drawn_as))
    sequences, copies = builder.finish(), np.concatenate(per_source)
    used = used_sequences(sequences, row_starts, copies, books)
    if not len(used):
        raise books.nothing_left()
    lengths = sequences.lengths[used].tolist()
    groups = pack_best_fit(lengths, max_length) if settings.pack else [[index] for index in range(len(used))]
    places, starts = pack_arrays(groups)
    members = used[places]
    accounting = books.close(
        rows_used=int(copies.sum()),
        trained=int(sequences.num_targets[members].sum()),
        in_samples=int(sequences.lengths[members].sum()),
        sequences=len(members),
        samples=len(groups),
        max_length=max_length,
    )
    return SampleSet(sequences, members, starts, accounting, origins.finish())


def _read_pieces(
    rows: Iterator[tuple[ReadRow, Encoded | RowProblem]],
    reader: RecordReader,
    tokenizer: Tokenizer,
    max_length: int,
) -> Iterator[tuple[Row, list[Encoded]]]:
    """Each row of a file that can be used with its sequence, or the pieces of a long text."""
    books = reader.books
    for read, encoded in rows:
        if isinstance(encoded, RowProblem):
            reader.reject(read.row, encoded)
            continue
        books.tokens_read += len(encoded.ids)
        if isinstance(read.record, TokenRow):
            encoded = _without_padding(encoded, tokenizer.special.pad, books)
        pieces = _fitting(encoded, max_length, books, may_cut=isinstance(read.record, Document))
        if pieces:
            yield read.row, pieces


def _without_padding(encoded: Encoded, pad_id: int, books: Books) -> Encoded:
    """Padding at the ends of a packed row, which nothing is learnt from, is cut off: it would be attended."""
    ids = np.asarray(encoded.ids)
    kept = np.flatnonzero((ids != pad_id) | np.asarray(encoded.learnt))
    start, end = (int(kept[0]), int(kept[-1]) + 1) if len(kept) else (0, 0)
    books.drop(PADDING_IN_ROWS, len(ids) - (end - start), rows=0)
    weights = None if encoded.weights is None else encoded.weights[start:end]
    return Encoded(encoded.ids[start:end], encoded.learnt[start:end], weights)


def _fitting(encoded: Encoded, max_length: int, books: Books, *, may_cut: bool) -> list[Encoded]:
    """The sequence, or its pieces, or nothing; what is dropped is noted."""
    num_tokens = len(encoded.ids)
    if num_tokens > max_length and not may_cut:
        books.drop(too_long(max_length), num_tokens)
        return []
    pieces = []
    unlearnt = 0
    for start in range(0, max(num_tokens, 1), max_length):
        end = start + max_length
        weights = None if encoded.weights is None else encoded.weights[start:end]
        piece = Encoded(encoded.ids[start:end], encoded.learnt[start:end], weights)
        if piece.num_targets:
            pieces.append(piece)
        else:
            unlearnt += len(piece.ids)
    if unlearnt or not pieces:
        books.drop(NOTHING_LEARNT, unlearnt, rows=not pieces)
    return pieces

"""Files of rows as the samples the original scripts make of them.

One generation at a time; the options that its command line has and ours has not are in `settings`.
The original shuffles before it packs, with a seed; the same seed gives the same rows here as long as Python's
generator is asked in the same order, which is how the scripts are written.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from telechat.data.accounting import COPIES, NOT_DRAWN, too_long
from telechat.data.encoding import conversation_ids, encode_document
from telechat.data.families import pretraining as pretraining_rows
from telechat.data.families import telechat1 as telechat1_rows
from telechat.data.families import telechat2 as telechat2_rows
from telechat.data.families.fields import text_field
from telechat.data.loss_mask import turn_mask
from telechat.data.official import pretraining, telechat1, telechat2
from telechat.data.official.settings import OfficialSettings
from telechat.data.origins import OriginsBuilder
from telechat.data.reading import RecordReader
from telechat.data.records import Conversation
from telechat.data.rows import Row, RowProblem
from telechat.data.samples import SampleSet
from telechat.data.sequences import Encoded, SequenceBuilder
from telechat.data.sources import Source
from telechat.errors import ConfigError
from telechat.tokenizer import Tokenizer

T = TypeVar("T")

LEFT_PADDING = "left padding, attended (official)"
REPEATED_PASSES = "later passes over the same packs (official)"
AFTER_LAST_SAMPLE = "not reached by the number of samples (official)"
LOST_IN_PACKING = "did not fit and was lost (official)"
ENDS_OF_PACKS = "newlines at the ends of packs (official)"
SYSTEM_TEXTS = "system texts of packs (official)"
CUT_AT_LENGTH = "past the length, cut off (official)"
REMAINDER = "left over after grouping (official)"


def load_official(
    sources: Sequence[Source],
    reader: RecordReader,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    seed: int,
    settings: OfficialSettings,
) -> SampleSet:
    """Samples of one generation's rows, each a single sequence.

    Raises:
        ConfigError: rows of several kinds or of a kind the original did not read; nothing left.
    """
    per_source = [(source, [read.row for read in reader.read(source)]) for source in sources]
    family = _only_family(reader)
    maker = _MAKERS[family](tokenizer, reader, max_length, random.Random(seed), settings)
    builder, origins = SequenceBuilder(), OriginsBuilder()
    for encoded, rows in maker.make(per_source):
        builder.add(encoded)
        origins.add(rows)
    sequences = builder.finish()
    if not len(sequences):
        raise reader.books.nothing_left()
    trained = int(sequences.num_targets.sum())
    if trained == 0:
        raise ConfigError("The samples hold no token to learn.", hint="Give rows with answers.")
    numbers = np.arange(len(sequences) + 1, dtype=np.int64)
    accounting = reader.books.close(
        rows_used=maker.rows_used,
        trained=trained,
        in_samples=len(sequences.ids),
        sequences=len(sequences),
        samples=len(sequences),
        max_length=max_length,
    )
    return SampleSet(sequences, numbers[:-1], numbers, accounting, origins.finish())


def _only_family(reader: RecordReader) -> str:
    names = {found.family.name for found in reader.recognised.values()}
    if len(names) == 1 and names <= _MAKERS.keys():
        return names.pop()
    raise ConfigError(
        f"The official mode takes one kind of rows of {', '.join(_MAKERS)}; "
        f"these files hold {', '.join(sorted(names))}.",
        hint="Use the default mode, which takes every kind at once.",
    )


FileRows = Sequence[tuple[Source, list[Row]]]
# A sample, and the rows that it was made of.
Made = tuple[Encoded, list[Row]]


class _Maker(ABC):
    """Makes the samples of one generation; `rows_used` is right when all have been made."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        reader: RecordReader,
        max_length: int,
        generator: random.Random,
        settings: OfficialSettings,
    ) -> None:
        self.tokenizer = tokenizer
        self.reader = reader
        self.books = reader.books
        self.max_length = max_length
        self.generator = generator
        self.settings = settings
        self.rows_used = 0

    @abstractmethod
    def make(self, files: FileRows) -> Iterator[Made]:
        """The samples."""

    def usable(self, rows: list[Row], encode: Callable[[Row], T]) -> list[T]:
        """The rows that can be encoded; the others are bad rows."""
        usable = []
        for row in rows:
            try:
                usable.append(encode(row))
            except RowProblem as problem:
                self.reader.reject(row, problem)
        return usable

    def note_use(self, uses: Sequence[int], tokens: Sequence[int], added: str, dropped: str) -> None:
        """Book how often each row is used, given its tokens."""
        for count, num_tokens in zip(uses, tokens, strict=True):
            if count == 0:
                self.books.drop(dropped, num_tokens)
            elif count > 1:
                self.books.add(added, (count - 1) * num_tokens, rows=count - 1)

    def cut(self, ids: list[int], learnt: list[bool]) -> Encoded:
        """A sample of at most the length; its end is cut off."""
        self.books.drop(CUT_AT_LENGTH, max(0, len(ids) - self.max_length), rows=0)
        return Encoded(ids[: self.max_length], learnt[: self.max_length])


@dataclass(frozen=True)
class _Line:
    """A TeleChat1 row as one text."""

    text: str
    row: Row


class _TeleChat1(_Maker):
    def make(self, files: FileRows) -> Iterator[Made]:
        lines: list[_Line] = []
        sizes: dict[str, int] = {}
        for source, rows in files:
            for line in self.usable(rows, lambda row: _concat_line(row, self.tokenizer, sizes)):
                self.books.tokens_read += sizes[line.text]
                copies = telechat1.draw_copies(source.weight, self.generator)
                self.note_use([copies], [sizes[line.text]], COPIES, NOT_DRAWN)
                lines += [line] * copies
        if not lines:
            return
        self.generator.shuffle(lines)
        texts = {line.text for line in lines}
        counted = {text: telechat1.packing_length(text, self.tokenizer) for text in texts}
        lengths = [counted[line.text] for line in lines]
        packs = telechat1.pack_lines(
            lengths,
            self.max_length,
            num_samples=self.settings.num_samples or None,
            num_workers=self.settings.num_workers,
        )
        limit = self.max_length - telechat1.SPARE
        uses = Counter(index for pack in packs for index in pack)
        for index, line in enumerate(lines):
            reason = AFTER_LAST_SAMPLE if lengths[index] < limit else too_long(limit - 1) + " (official)"
            self.note_use([uses[index]], [sizes[line.text]], REPEATED_PASSES, reason)
        self.rows_used = sum(uses.values())
        for pack in packs:
            sample = telechat1.sample_of(
                "".join(lines[index].text for index in pack),
                self.tokenizer,
                self.max_length,
                with_loss_mask=self.settings.with_loss_mask,
            )
            num_tokens = sum(sizes[lines[index].text] for index in pack)
            self.books.add(LEFT_PADDING, self.max_length - num_tokens)
            yield sample, [lines[index].row for index in pack]


def _concat_line(row: Row, tokenizer: Tokenizer, sizes: dict[str, int]) -> _Line:
    """The row's line; the tokens its text has in a sample are noted in `sizes`."""
    text = telechat1.concat_line(row.value)
    if text not in sizes:
        sizes[text] = len(telechat1.line_ids(text, tokenizer))
    return _Line(text, row)


@dataclass(frozen=True)
class _Dialog:
    """A TeleChat2 row, encoded; `ids` are the turns alone where it is to be packed."""

    row: Row
    system: str
    ids: list[int]
    is_packed: bool


class _TeleChat2(_Maker):
    def make(self, files: FileRows) -> Iterator[Made]:
        drawn: list[_Dialog] = []
        for source, rows in files:
            dialogs = self.usable(rows, self._encode)
            numbers = telechat2.draw_rows(len(dialogs), source.weight, self.generator)
            uses = Counter(numbers)
            tokens = [len(dialog.ids) for dialog in dialogs]
            self.books.tokens_read += sum(tokens)
            self.note_use([uses[number] for number in range(len(dialogs))], tokens, COPIES, NOT_DRAWN)
            drawn += [dialogs[number] for number in numbers]
        self.rows_used = len(drawn)
        for system in sorted({dialog.system for dialog in drawn if dialog.is_packed}):
            yield from self._packs(
                system, [dialog for dialog in drawn if dialog.is_packed and dialog.system == system]
            )
        for dialog in drawn:
            if not dialog.is_packed:
                yield self.cut(dialog.ids, turn_mask(dialog.ids, self.tokenizer.special)), [dialog.row]

    def _encode(self, row: Row) -> _Dialog:
        system, turns = text_field(row.value, "system"), telechat2_rows.read_dialog(row.value)
        if not telechat2_rows.flag(row.value, "tool") and not telechat2_rows.flag(row.value, "multiturn"):
            return _Dialog(row, system, telechat2.dialog_ids(turns, self.tokenizer), is_packed=True)
        if self.tokenizer.chat_format.name != "telechat2":
            ids = telechat2.manual_ids(system, turns, self.tokenizer)
            return _Dialog(row, system, ids, is_packed=False)
        conversation = Conversation(({"role": "system", "content": system}, *turns))
        return _Dialog(row, system, conversation_ids(conversation, self.tokenizer), is_packed=False)

    def _packs(self, system: str, dialogs: list[_Dialog]) -> Iterator[Made]:
        prefix = telechat2.system_prefix(system, self.tokenizer)
        newline = self.tokenizer.encode("\n")
        for batch in telechat2.shard_rows(range(len(dialogs)), self.settings.num_workers):
            rows = [dialogs[number] for number in batch]
            packed = telechat2.pack_rows(prefix, [row.ids for row in rows], newline, self.max_length)
            for lost in packed.lost_rows:
                self.books.drop(LOST_IN_PACKING, len(rows[lost].ids))
            self.rows_used -= len(packed.lost_rows)
            self.books.add(SYSTEM_TEXTS, len(prefix) * len(packed.packs))
            self.books.drop(ENDS_OF_PACKS, len(newline) * (len(packed.packs) - 1), rows=0)
            for pack, members in zip(packed.packs, packed.members, strict=True):
                made = self.cut(pack, turn_mask(pack, self.tokenizer.special))
                yield made, [rows[member].row for member in members]


@dataclass(frozen=True)
class _Text:
    """A pre-training row, encoded."""

    row: Row
    ids: list[int]


class _Pretraining(_Maker):
    def make(self, files: FileRows) -> Iterator[Made]:
        texts: list[_Text] = []
        for source, rows in files:
            encoded = self.usable(rows, self._encode)
            numbers = pretraining.draw_rows(len(encoded), source.weight, self.generator)
            uses = Counter(numbers)
            tokens = [len(text.ids) for text in encoded]
            self.books.tokens_read += sum(tokens)
            self.note_use([uses[number] for number in range(len(encoded))], tokens, COPIES, NOT_DRAWN)
            texts += [encoded[number] for number in numbers]
        self.rows_used = len(texts)
        samples = [text.ids for text in texts]
        members = [[number] for number in range(len(texts))]
        if self.settings.group_texts:
            lengths = list(map(len, samples))
            samples = pretraining.group(samples, self.max_length)
            self.books.drop(REMAINDER, sum(lengths) - sum(map(len, samples)), rows=0)
            members = pretraining.members(lengths, len(samples), self.max_length)
        for ids, numbers in zip(samples, members, strict=True):
            yield self.cut(ids, [True] * len(ids)), [texts[number].row for number in numbers]

    def _encode(self, row: Row) -> _Text:
        ids = encode_document(pretraining_rows.read(row.value).text, self.tokenizer).ids
        return _Text(row, list(ids))


_MAKERS: Mapping[str, type[_Maker]] = {
    telechat1_rows.NAME: _TeleChat1,
    telechat2_rows.NAME: _TeleChat2,
    pretraining_rows.NAME: _Pretraining,
}

"""What a training file becomes, gathered for showing: tokens, borders of conversations, loss mask, lengths.

Text is made safe to show here, once: whatever a terminal would obey or nobody would see is spelled out. How
it looks is decided in `inspection_text` and `inspection_html`.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from telechat.data.accounting import Accounting
from telechat.data.dataset import Mode, load_samples
from telechat.data.families import preference
from telechat.data.files import read_file
from telechat.data.loss_mask import LossOn
from telechat.data.preferences import PreferenceSet, load_preferences
from telechat.data.reading import OnBadRow
from telechat.data.recognise import recognise_rows
from telechat.data.rows import Row
from telechat.data.samples import SampleSet
from telechat.data.sequences import Sequences
from telechat.data.sources import read_sources
from telechat.tokenizer import Tokenizer

_BARS = 12
_PART_OF_A_CHARACTER = "⋯"
_SHOWN = {"\n": "⏎\n", "\t": "⇥"}
# Categories that are obeyed rather than seen: controls, formats, surrogates, line and paragraph separators.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


@dataclass(frozen=True)
class ShownToken:
    """A token; `text` is safe to print, `is_target` says that it is learnt."""

    token_id: int
    text: str
    is_target: bool
    is_control: bool


@dataclass(frozen=True)
class ShownSequence:
    """A conversation, text or answer within a sample."""

    title: str
    tokens: tuple[ShownToken, ...]


@dataclass(frozen=True)
class Bar:
    """Sequences of `low` to `high` tokens."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class Inspection:
    """Everything there is to show.

    Attributes:
        name: of the file.
        tokenizer: where the tokens come from.
        accounting: rows and tokens.
        bars: lengths of the sequences.
        samples: the samples that hold the file's first rows.
    """

    name: str
    tokenizer: str
    accounting: Accounting
    bars: tuple[Bar, ...]
    samples: tuple[tuple[ShownSequence, ...], ...]


def inspect_file(
    path: Path,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    num_samples: int,
    mode: Mode = "default",
    loss_on: LossOn = "answers",
    on_bad_row: OnBadRow = "skip",
) -> Inspection:
    """Load a file as training would and take out what to show.

    Args:
        path: rows of any kind, preference rows too, or a mixing file.
        num_samples: how many samples to show.
        max_length, mode, loss_on, on_bad_row: as `load_samples`.

    Raises:
        ConfigError: as `load_samples`.
    """
    first = read_sources(path)[0].path
    if recognise_rows(read_file(first), first).family.name == preference.NAME:
        rows = (row.value for row in read_file(first) if isinstance(row, Row))
        paired = "rejected" in next(row for row in rows if preference.recognise(row))
        preferences = load_preferences(
            path, tokenizer, max_length=max_length, paired=paired, on_bad_row=on_bad_row
        )
        sequences, accounting = preferences.sequences, preferences.accounting
        shown = _preference_samples(preferences, tokenizer, num_samples)
    else:
        samples = load_samples(
            path, tokenizer, max_length=max_length, mode=mode, loss_on=loss_on, on_bad_row=on_bad_row
        )
        sequences, accounting = samples.sequences, samples.accounting
        shown = _packed_samples(samples, tokenizer, num_samples)
    return Inspection(
        str(path), str(tokenizer.folder), accounting, length_bars(sequences.lengths.tolist()), shown
    )


def length_bars(lengths: Sequence[int]) -> tuple[Bar, ...]:
    """At most twelve bars of equal width, from the shortest to the longest."""
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    width = -(-(longest - shortest + 1) // _BARS)
    counts = np.bincount((np.asarray(lengths, dtype=np.int64) - shortest) // width)
    lows = range(shortest, shortest + width * len(counts), width)
    return tuple(Bar(low, low + width - 1, count) for low, count in zip(lows, counts.tolist(), strict=True))


def show_tokens(ids: Sequence[int], targets: Sequence[bool], tokenizer: Tokenizer) -> tuple[ShownToken, ...]:
    """Tokens with texts that are safe to print; control tokens by their name.

    A character that several tokens make up stands at the last of them.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    tokens = []
    for token_id, is_target in zip(ids, targets, strict=True):
        content = tokenizer.token_bytes(token_id)
        if content is None:
            decoder.reset()
            name = tokenizer.id_to_token(token_id) or f"<{token_id}>"
            tokens.append(ShownToken(token_id, visible(name), is_target, is_control=True))
        else:
            text = decoder.decode(content)
            tokens.append(
                ShownToken(token_id, visible(text) if text else _PART_OF_A_CHARACTER, is_target, False)
            )
    return tuple(tokens)


def visible(text: str) -> str:
    """`text` with everything that is not seen spelled out; a line end is shown and kept."""
    return "".join(
        _SHOWN.get(char) or (f"\\u{ord(char):04x}" if unicodedata.category(char) in _UNSEEN else char)
        for char in text
    )


def _packed_samples(
    samples: SampleSet, tokenizer: Tokenizer, number: int
) -> tuple[tuple[ShownSequence, ...], ...]:
    """The samples in the order in which the file's rows first occur in them."""
    sample_of_member = np.repeat(np.arange(len(samples)), np.diff(samples.starts))
    in_file_order = sample_of_member[np.argsort(samples.members, kind="stable")]
    chosen = list(dict.fromkeys(in_file_order.tolist()))[:number]
    shown = []
    for sample in chosen:
        members = samples.members_of(sample).tolist()
        shown.append(
            tuple(
                _sequence(samples.sequences, member, f"sequence {place} of {len(members)}", tokenizer)
                for place, member in enumerate(members, 1)
            )
        )
    return tuple(shown)


def _preference_samples(
    preferences: PreferenceSet, tokenizer: Tokenizer, number: int
) -> tuple[tuple[ShownSequence, ...], ...]:
    shown = []
    for row in range(min(number, len(preferences))):
        if preferences.labels is None:
            named = [(2 * row, "chosen"), (2 * row + 1, "rejected")]
        else:
            named = [(row, "good" if preferences.labels[row] else "bad")]
        shown.append(tuple(_sequence(preferences.sequences, place, name, tokenizer) for place, name in named))
    return tuple(shown)


def _sequence(sequences: Sequences, number: int, name: str, tokenizer: Tokenizer) -> ShownSequence:
    span = sequences.span(number)
    targets: list[bool] = sequences.learnt[span].tolist()
    targets[0] = False  # nothing predicts a first token
    tokens = show_tokens(sequences.ids[span].tolist(), targets, tokenizer)
    return ShownSequence(f"{name}: {len(tokens)} tokens, {sum(targets)} learnt", tokens)

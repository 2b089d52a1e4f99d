"""Packing loses nothing, exceeds nothing, mixes nothing; the books balance for any rows and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from telechat.data.mixing import copies_per_row, used_sequences
from telechat.data.official import telechat1, telechat2
from telechat.data.packing import pack_arrays, pack_best_fit
from telechat.data.reading import Books
from telechat.data.samples import IGNORED, PADDING_SEGMENT, fill_batch
from telechat.data.sequences import Encoded, SequenceBuilder, Sequences

CAPACITY = 24


def sequences_of(draw: Any) -> Sequences:
    builder = SequenceBuilder()
    rows = draw(st.lists(st.lists(st.booleans(), min_size=1, max_size=CAPACITY), min_size=1, max_size=30))
    weighted = draw(st.booleans())
    next_id = 0
    for learnt in rows:
        # Every token has its own id, so that a token in the wrong place is noticed.
        ids = list(range(next_id, next_id + len(learnt)))
        builder.add(Encoded(ids, learnt, [1.0 + token_id for token_id in ids] if weighted else None))
        next_id += len(learnt)
    return builder.finish()


sequence_sets = st.composite(sequences_of)()


@given(st.lists(st.integers(0, CAPACITY), max_size=200))
def test_best_fit_uses_every_index_once_within_capacity(lengths: list[int]) -> None:
    packs = pack_best_fit(lengths, CAPACITY)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in pack) <= CAPACITY for pack in packs)
    assert all(packs)


@given(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=60))
def test_best_fit_equals_the_plain_search(lengths: list[int]) -> None:
    """The tree finds the same samples as looking at every sample: the fullest that takes the sequence."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else CAPACITY) - length)
    packs = pack_best_fit(lengths, CAPACITY)
    found = [CAPACITY - sum(lengths[index] for index in pack) for pack in packs]
    assert sorted(found) == sorted(spaces)


@given(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=60))
def test_best_fit_wastes_little(lengths: list[int]) -> None:
    """Any two samples together hold more than one sample could, so at least half of the places are used."""
    packs = pack_best_fit(lengths, CAPACITY)
    filled = sorted(sum(lengths[index] for index in pack) for pack in packs)
    assert len(filled) < 2 or filled[0] + filled[1] > CAPACITY


@given(sequence_sets)
def test_no_conversation_leaks_into_another(sequences: Sequences) -> None:
    packs = pack_best_fit(sequences.lengths.tolist(), CAPACITY)
    batch = fill_batch(sequences, packs, pad_id=-7, length=CAPACITY)
    for row, pack in enumerate(packs):
        for segment, number in enumerate(pack):
            places = np.flatnonzero(batch.segments[row] == segment)
            span = sequences.span(number)
            assert batch.ids[row, places].tolist() == sequences.ids[span].tolist()
            assert batch.positions[row, places].tolist() == list(range(len(places)))
            # Whatever is predicted inside a conversation is its own next token, marked as learnt.
            expected = np.where(sequences.learnt[span][1:], sequences.ids[span][1:], IGNORED)
            assert batch.targets[row, places].tolist() == [*expected.tolist(), IGNORED]
        padding = batch.segments[row] == PADDING_SEGMENT
        assert (batch.ids[row, padding] == -7).all() and (batch.targets[row, padding] == IGNORED).all()
    assert int((batch.targets != IGNORED).sum()) == int(sequences.num_targets.sum())
    if batch.weights is not None:
        learnt = batch.targets != IGNORED
        assert (batch.weights[learnt] == batch.targets[learnt] + 1).all()
    assert batch.is_packed == any(len(pack) > 1 for pack in packs)


@given(sequence_sets, st.data())
def test_books_balance_for_any_weights(sequences: Sequences, data: st.DataObject) -> None:
    """Tokens read + copies = tokens in samples + not drawn; also where a row was cut into pieces."""
    books = Books()
    books.tokens_read = len(sequences.ids)
    cuts = data.draw(st.sets(st.integers(0, len(sequences) - 1)))
    row_starts = sorted({0, *cuts})
    books.rows_read = len(row_starts)
    weight = data.draw(st.floats(0, 4))
    copies = copies_per_row(len(row_starts), weight, seed=3, name="f")
    assert copies.sum() == round(weight * len(row_starts))
    assert copies.max() - copies.min() <= 1
    used = used_sequences(sequences, row_starts, copies, books)
    packs = pack_best_fit(sequences.lengths[used].tolist(), CAPACITY)
    members, _ = pack_arrays(packs)
    in_samples = sequences.take(used[members])
    accounting = books.close(  # asserts the identity
        rows_used=int(copies.sum()),
        trained=int(in_samples.num_targets.sum()),
        in_samples=len(in_samples.ids),
        sequences=len(members),
        samples=len(packs),
        max_length=CAPACITY,
    )
    assert accounting.num_sequences == len(used)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 3))
def test_official_telechat1_packs_hold_every_usable_line_once(lengths: list[int], num_workers: int) -> None:
    lengths = [*lengths, *[1] * num_workers]
    size = len(lengths) // num_workers
    shards = [lengths[worker * size : (worker + 1) * size] for worker in range(num_workers)]
    if any(min(shard) >= 30 for shard in shards):
        return
    packs = telechat1.pack_lines(lengths, 40, num_workers=num_workers)
    assert sorted(line for pack in packs for line in pack) == [
        line for line, length in enumerate(lengths) if length < 30
    ]
    assert all(sum(lengths[line] for line in pack) < 30 for pack in packs)


@given(st.lists(st.integers(1, 12), max_size=30))
def test_official_telechat2_packs_hold_every_row_or_name_it_lost(lengths: list[int]) -> None:
    newline = [7, 8]
    rows = [[*[100 + number] * length, *newline] for number, length in enumerate(lengths)]
    packed = telechat2.pack_rows([6], rows, newline, 16)
    kept = {token for pack in packed.packs for token in pack if token >= 100}
    assert kept == {100 + number for number in range(len(rows))} - {100 + row for row in packed.lost_rows}
    tokens = sum(map(len, packed.packs)) + len(newline) * (len(packed.packs) - 1)
    lost = sum(len(rows[row]) for row in packed.lost_rows)
    assert tokens == len(packed.packs) + sum(map(len, rows)) - lost

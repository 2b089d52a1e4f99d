"""Preference rows to batches: pairs, judged answers, and the mismatched answers KTO needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telechat.data.preferences import load_preferences
from telechat.data.samples import fill_batch
from telechat.data.sequences import Sequences
from telechat.errors import ConfigError
from telechat.tokenizer import Tokenizer

WriteRows = Callable[..., Path]
PAIRS = [
    {"prompt": "q1", "chosen": "好", "rejected": "坏得多"},
    {
        "prompt": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "earlier"},
            {"role": "user", "content": "q2"},
        ],
        "chosen": [{"role": "assistant", "content": "更好"}],
        "rejected": [{"role": "assistant", "content": "差"}],
    },
]
VOTES = [
    {"prompt": "q1", "completion": "好", "label": True},
    {"prompt": "question 2", "completion": "坏得多", "label": False},
    {"prompt": "q3", "completion": "行", "label": True},
]


def answers_of(sequences: Sequences, numbers: list[int], tokenizer: Tokenizer) -> list[str]:
    """What is learnt of each sequence."""
    batch = fill_batch(sequences, [[number] for number in numbers], pad_id=3)
    return [tokenizer.decode(row[row != -100].tolist()) for row in batch.targets]


def test_pairs_alternate_chosen_and_rejected(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    pairs = load_preferences(write_rows(*PAIRS), demo_tokenizer, max_length=99, paired=True)
    # Only the answer itself is learnt, not the earlier turn.
    answers = answers_of(pairs.sequences, [0, 1, 2, 3], demo_tokenizer)
    assert answers == ["好<_end>", "坏得多<_end>", "更好<_end>", "差<_end>"]
    assert len(pairs) == 2 and pairs.is_paired and pairs.labels is None
    assert pairs.accounting.tokens_read == len(pairs.sequences.ids)


def test_prompt_lengths_end_before_the_answer(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    pairs = load_preferences(write_rows(*PAIRS), demo_tokenizer, max_length=99, paired=True)
    for row, length in enumerate(pairs.prompt_lengths.tolist()):
        ids = pairs.sequences.ids
        chosen, rejected = (ids[pairs.sequences.span(2 * row + side)] for side in (0, 1))
        assert chosen[:length].tolist() == rejected[:length].tolist()
        assert chosen[length - 1] == demo_tokenizer.special.bot


def test_weighted_pairs_stay_together(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    path = write_rows(*PAIRS)
    pairs = load_preferences({str(path): 2.5}, demo_tokenizer, max_length=99, paired=True)
    assert len(pairs) == 5 and pairs.accounting.rows_used == 5
    for row in range(5):
        length = int(pairs.prompt_lengths[row])
        chosen, rejected = (pairs.sequences.ids[pairs.sequences.span(2 * row + side)] for side in (0, 1))
        assert chosen[:length].tolist() == rejected[:length].tolist()


def test_judged_answers_keep_their_labels(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    votes = load_preferences(write_rows(*VOTES), demo_tokenizer, max_length=99, paired=False)
    assert votes.labels is not None and votes.labels.tolist() == [True, False, True]
    assert answers_of(votes.sequences, [2, 0], demo_tokenizer) == ["行<_end>", "好<_end>"]


def test_a_pair_counts_as_a_good_and_a_bad_answer(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    votes = load_preferences(write_rows(*PAIRS), demo_tokenizer, max_length=99, paired=False)
    assert votes.labels is not None and votes.labels.tolist() == [True, False, True, False]
    assert answers_of(votes.sequences, [0, 1], demo_tokenizer) == ["好<_end>", "坏得多<_end>"]


def test_mismatched_answers_belong_to_other_prompts(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    votes = load_preferences(write_rows(*VOTES), demo_tokenizer, max_length=99, paired=False)
    others = votes.mismatched(max_length=99, seed=1)
    assert others.ids.tolist() == votes.mismatched(max_length=99, seed=1).ids.tolist()
    answers = answers_of(others, [0, 1, 2], demo_tokenizer)
    assert sorted(answers) == sorted(["行<_end>", "好<_end>", "坏得多<_end>"])
    own = answers_of(votes.sequences, [0, 1, 2], demo_tokenizer)
    assert all(map(str.__ne__, answers, own))
    for row, length in enumerate(votes.prompt_lengths.tolist()):
        prompts = [one.ids[one.span(row)][:length].tolist() for one in (others, votes.sequences)]
        assert prompts[0] == prompts[1]
    longest = int(votes.prompt_lengths.max()) + 1
    assert votes.mismatched(max_length=longest, seed=1).lengths.max() == longest


def test_judged_answers_cannot_be_compared(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="line 1: it judges one answer"):
        load_preferences(write_rows(*VOTES), demo_tokenizer, max_length=99, paired=True)
    with pytest.raises(ConfigError, match="it is no preference row"):
        load_preferences(write_rows({"text": "t"}), demo_tokenizer, max_length=99, paired=True)


def test_long_pairs_are_dropped_whole(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    long: dict[str, Any] = {"prompt": "q", "chosen": "a", "rejected": "长" * 90}
    pairs = load_preferences(write_rows(long, *PAIRS), demo_tokenizer, max_length=80, paired=True)
    assert len(pairs) == 2 and pairs.accounting.rows_dropped == {"longer than 80 tokens": 1}
    with pytest.raises(ConfigError, match="None of the 1 rows"):
        load_preferences(write_rows(long), demo_tokenizer, max_length=80, paired=True)
    skipped = load_preferences(
        write_rows(*PAIRS, {"prompt": "q"}), demo_tokenizer, max_length=80, paired=True, on_bad_row="skip"
    )
    assert [bad.line for bad in skipped.accounting.bad_rows] == [3]
    assert np.all(skipped.sequences.num_targets > 0)

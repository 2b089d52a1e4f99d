"""The quirks of the original training data code, one test each: kept in the official mode, or repaired.

The names count as the description of the original does: A is TeleChat1's DeepSpeed trainer, B TeleChat2's
script; A2_1 is step 1 of A.2. `tests/golden/test_sft_golden.py` compares with what the originals recorded.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from telechat.data.dataset import load_samples
from telechat.data.loss_mask import answer_mask, answer_spans, turn_mask
from telechat.data.official import pretraining, telechat1, telechat2
from telechat.data.official.samples import LOST_IN_PACKING
from telechat.data.official.settings import OfficialSettings
from telechat.data.rows import RowProblem
from telechat.errors import ConfigError
from telechat.tokenizer import Tokenizer

WriteRows = Callable[..., Path]
SYSTEM = "你是助手。\n"


def dialog_row(question: str, answer: str, **changes: Any) -> dict[str, Any]:
    dialog = [{"role": "user", "content": question}, {"role": "bot", "content": answer}]
    return {"system": SYSTEM, "dialog": dialog, "multiturn": False, "tool": False, **changes}


# ---- A: TeleChat1 ----


def test_A1_weights_by_file(write_rows: WriteRows, telechat1_tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_rows({"input": "单轮", "output": "a"}, name="single.jsonl")
    write_rows({"input": "q1<_bot>a1<_user>q2", "output": "a2"}, name="multi.jsonl")
    mixing = write_rows('{"single.jsonl": 2.0, "multi.jsonl": 1.0}', name="data.json")
    accounting = load_samples(mixing, telechat1_tokenizer, max_length=64).accounting
    assert accounting.rows_read == 2 and accounting.rows_used == 3


def test_A2_1_one_leading_mark_is_stripped_and_put_back() -> None:
    assert telechat1.concat_line({"input": "<_user>q", "output": "<_bot>a"}) == "<_user>q<_bot>a<_end>"
    assert telechat1.concat_line({"input": "q", "output": "a"}) == "<_user>q<_bot>a<_end>"


def test_A2_2_turns_of_an_input_get_their_ends() -> None:
    row = {"input": "<_user>q1<_bot>a1<_user>q2<_bot>a2<_user>q3", "output": "a3"}
    turns = [f"<_user>q{number}<_bot>a{number}<_end>" for number in (1, 2, 3)]
    assert telechat1.concat_line(row) == "".join(turns)


def test_A2_3_unequal_marks_are_a_bad_row() -> None:
    with pytest.raises(RowProblem, match="2 <_user>, 1 <_bot>, 1 <_end>"):
        telechat1.concat_line({"input": "what is <_user>?", "output": "a"})


def test_A2_4_weights_draw_each_row_by_chance() -> None:
    generator = random.Random(7)
    half = [telechat1.draw_copies(0.5, generator) for _ in range(400)]
    more = [telechat1.draw_copies(2.25, generator) for _ in range(400)]
    assert set(half) == {0, 1} and 150 < sum(half) < 250
    assert set(more) == {2, 3} and 60 < sum(more) - 800 < 140
    assert telechat1.draw_copies(1.0, generator) == 1


def test_A3_lengths_are_those_of_the_whole_line_as_text(telechat1_tokenizer: Tokenizer) -> None:
    line = "<_user>你好<_bot>您好<_end>"
    in_pieces = len(telechat1.line_ids(line, telechat1_tokenizer))
    # `<_end>` is no whole token next to text, so it counts as several.
    assert telechat1.packing_length(line, telechat1_tokenizer) >= in_pieces + 3


def test_A3_lines_near_the_length_are_dropped() -> None:
    assert telechat1.pack_lines([89, 90, 91], 100) == [[0]]


def test_A3_first_fit_skips_what_does_not_fit() -> None:
    # Shortest is 20: the scan goes on until at most that much is left.
    assert telechat1.pack_lines([50, 60, 20, 45], 100) == [[0, 2], [1], [3]]


def test_A3_the_scan_ends_by_the_shortest_line_even_a_dropped_one() -> None:
    # With 75 of 100 filled, 25 are left: no more than the shortest line, so 10 is not even tried.
    assert telechat1.pack_lines([75, 30, 25], 100) == [[0], [1, 2]]
    assert telechat1.pack_lines([75, 30, 10], 100) == [[0, 2], [1]]


def test_A3_later_passes_repeat_the_same_samples() -> None:
    assert telechat1.pack_lines([50, 60], 100, num_samples=5) == [[0], [1], [0], [1], [0]]


def test_A3_workers_have_contiguous_shards_and_the_last_takes_the_remainder() -> None:
    packs = telechat1.pack_lines([60] * 5, 100, num_samples=4, num_workers=2)
    assert packs == [[0], [1], [2], [3]]
    assert telechat1.pack_lines([60] * 5, 100, num_workers=2) == [[0], [1], [2], [3], [4]]


def test_A3_only_long_lines_are_an_error_instead_of_an_endless_loop() -> None:
    with pytest.raises(ConfigError, match="All 2 lines of a shard have 90 tokens or more"):
        telechat1.pack_lines([90, 200], 100, num_samples=3)


def test_A4_turns_are_encoded_piece_by_piece(telechat1_tokenizer: Tokenizer) -> None:
    special, encode = telechat1_tokenizer.special, telechat1_tokenizer.encode
    ids = telechat1.line_ids("<_user>你好<_bot>您好<_end><_user>a<_bot>b<_end>", telechat1_tokenizer)
    first = [special.user, *encode("你好"), special.bot, *encode("您好"), special.eos]
    assert ids == [*first, special.user, *encode("a"), special.bot, *encode("b"), special.eos]


def test_A4_official_padding_is_literal_3_on_the_left(telechat1_tokenizer: Tokenizer) -> None:
    sample = telechat1.sample_of("<_user>a<_bot>b<_end>", telechat1_tokenizer, 32)
    ids = telechat1.line_ids("<_user>a<_bot>b<_end>", telechat1_tokenizer)
    assert list(sample.ids) == [3] * (32 - len(ids)) + ids


def test_A4_a_pack_that_encodes_longer_than_it_counts_is_an_error(telechat1_tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="tokens, encoded turn by turn, and a sample 4"):
        telechat1.sample_of("<_user>1<_bot>1<_end>", telechat1_tokenizer, 4)


def test_A4_content_with_marks_breaks_the_official_format_only(
    write_rows: WriteRows, telechat1_tokenizer: Tokenizer
) -> None:
    rows = write_rows({"input": "q", "output": "write <_end> now"})
    with pytest.raises(ConfigError, match=r"line 1.*their numbers must be equal"):
        load_samples(rows, telechat1_tokenizer, max_length=64, mode="official")
    samples = load_samples(rows, telechat1_tokenizer, max_length=64)
    assert list(samples.sequences.ids).count(telechat1_tokenizer.special.eos) == 1


def test_A4_default_padding_is_never_attended(write_rows: WriteRows, telechat1_tokenizer: Tokenizer) -> None:
    samples = load_samples(write_rows({"input": "q", "output": "a"}), telechat1_tokenizer, max_length=64)
    batch = samples.batch([0], pad_id=3, length=20)
    assert (batch.ids[batch.segments == -1] == 3).all() and (batch.segments == -1).sum() > 0
    assert (batch.targets[batch.segments == -1] == -100).all()


def test_A5_official_mask_has_user_tokens_and_bot_through_end(telechat1_tokenizer: Tokenizer) -> None:
    special = telechat1_tokenizer.special
    ids = [special.user, 100, special.bot, 101, special.eos, special.user, 102, 103, special.bot, special.eos]
    assert [place for place, mark in enumerate(turn_mask(ids, special)) if mark] == [0, 2, 3, 4, 5, 8, 9]
    assert [place for place, mark in enumerate(answer_mask(ids, special)) if mark] == [3, 4, 9]


def test_A5_mask_is_right_in_every_row_of_a_batch(
    write_rows: WriteRows, telechat1_tokenizer: Tokenizer
) -> None:
    row = {"input": "问题", "output": "回答"}
    samples = load_samples(write_rows(row, row, row), telechat1_tokenizer, max_length=64, pack=False)
    batch = samples.batch([0, 1, 2], pad_id=3)
    assert (batch.targets[0] != -100).any()
    assert (batch.targets == batch.targets[0]).all()


def test_A5_without_the_mask_padding_is_learnt_too(telechat1_tokenizer: Tokenizer) -> None:
    sample = telechat1.sample_of("<_user>a<_bot>b<_end>", telechat1_tokenizer, 32, with_loss_mask=False)
    assert all(sample.learnt) and len(sample.learnt) == 32


# ---- B: TeleChat2 ----


def test_B1_required_fields(write_rows: WriteRows, telechat2_tokenizer: Tokenizer) -> None:
    row = dialog_row("q", "a")
    del row["system"]
    with pytest.raises(ConfigError, match="line 1: the field system is missing"):
        load_samples(write_rows(row), telechat2_tokenizer, max_length=64)


def test_B1_official_drawing_is_with_replacement() -> None:
    drawn = telechat2.draw_rows(100, 1.0, random.Random(1))
    assert len(drawn) == 100 and 50 < len(set(drawn)) < 75
    assert len(telechat2.draw_rows(7, 1.24, random.Random(1))) == 9


def test_B1_pretraining_drawing_goes_round_in_new_orders() -> None:
    drawn = pretraining.draw_rows(10, 2.55, random.Random(1))
    assert len(drawn) == 25 and sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))
    assert drawn[:10] != drawn[10:20]


def test_B1_default_drawing_loses_no_row(write_rows: WriteRows, telechat2_tokenizer: Tokenizer) -> None:
    path = write_rows(*(dialog_row(f"q{number}", "a") for number in range(10)))
    samples = load_samples({str(path): 1.24}, telechat2_tokenizer, max_length=64)
    assert samples.accounting.rows_used == 12 and len(set(samples.members.tolist())) == 10


def test_B2_only_single_turns_without_tools_are_packed_by_system(
    write_rows: WriteRows, telechat2_tokenizer: Tokenizer
) -> None:
    rows = [dialog_row("q", "a"), dialog_row("q", "a", multiturn=True), dialog_row("q", "a", tool=True)]
    rows += [dialog_row("q", "a", system="另一个"), dialog_row("q", "a", system="")]
    for row in rows:
        # Weight 1 draws with replacement, so one row of a kind at a time.
        samples = load_samples(write_rows(row), telechat2_tokenizer, max_length=200, mode="official")
        ids = samples.sequences.ids.tolist()
        packed = not row["multiturn"] and not row["tool"]
        prefix = telechat2.system_prefix(row["system"], telechat2_tokenizer)
        dialog = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        turns = telechat2.dialog_ids(dialog, telechat2_tokenizer)
        assert (ids == prefix + turns) is packed


def test_B2_a_row_that_overflows_a_pack_is_lost_and_counted(
    write_rows: WriteRows, telechat2_tokenizer: Tokenizer
) -> None:
    packed = telechat2.pack_rows([6], [[1] * 5, [2] * 5, [3] * 5], [7, 8], max_length=10)
    assert packed.lost_rows == [1] and packed.packs == [[6, 1, 1, 1], [6, 3, 3, 3, 3, 3]]
    rows = write_rows(*[dialog_row("问题" * 20, "回答" * 20)] * 30)
    samples = load_samples(rows, telechat2_tokenizer, max_length=200, mode="official")
    assert samples.accounting.rows_dropped[LOST_IN_PACKING] > 0
    repaired = load_samples(rows, telechat2_tokenizer, max_length=200)
    assert repaired.accounting.rows_used == 30 and not repaired.accounting.rows_dropped


def test_B2_a_pack_may_hold_the_system_text_only_but_no_repaired_sample_does(
    write_rows: WriteRows, telechat2_tokenizer: Tokenizer
) -> None:
    packed = telechat2.pack_rows([6], [[1] * 5, [2] * 6], [7, 8], max_length=10)
    assert packed.packs[-1] == [6] and packed.lost_rows == [1]
    rows = write_rows(dialog_row("1" * 30, "a"), dialog_row("1" * 40, "a"))  # digits are tokens
    samples = load_samples(rows, telechat2_tokenizer, max_length=64)
    assert len(samples) == 2 and all(samples.num_targets)


def test_B2_newline_ends_every_pack_but_the_last_is_cut() -> None:
    packed = telechat2.pack_rows([6], [[1, 7, 8], [1, 7, 8], [1, 7, 8]], [7, 8], max_length=6)
    assert packed.packs == [[6, 1], [6, 1, 7, 8]] and packed.lost_rows == [1]


def test_B2_shards_and_batches_of_a_thousand_pack_alone() -> None:
    batches = telechat2.shard_rows(range(2101), 2)
    assert [len(batch) for batch in batches] == [1000, 51, 1000, 50]
    assert [row for batch in batches for row in batch] == list(range(2101))


def test_B2_template_and_manual_layout_give_different_ids(
    write_rows: WriteRows, telechat2_tokenizer: Tokenizer, telechat2_115b_tokenizer: Tokenizer
) -> None:
    path = write_rows(dialog_row("q", "a", multiturn=True))
    template = load_samples(path, telechat2_tokenizer, max_length=99, mode="official").sequences.ids
    manual = load_samples(path, telechat2_115b_tokenizer, max_length=99, mode="official").sequences.ids
    newline = telechat2_tokenizer.encode("\n")
    assert template.tolist()[-len(newline) :] == newline
    assert manual.tolist()[-1] == telechat2_115b_tokenizer.special.eos
    # The row's system text ends with a newline and both add one; the template encodes them together.
    assert manual.tolist()[: manual.tolist().index(4)][-len(newline) :] == newline


def test_B3_padding_is_right_and_carries_no_loss(
    write_rows: WriteRows, telechat2_tokenizer: Tokenizer
) -> None:
    path = write_rows(dialog_row("q", "a"), dialog_row("问题" * 8, "回答" * 8))
    samples = load_samples(path, telechat2_tokenizer, max_length=200, pack=False)
    batch = samples.batch([0, 1], pad_id=3)
    short = samples.lengths[0]
    assert (batch.segments[0] == [0] * short + [-1] * (batch.ids.shape[1] - short)).all()
    assert (batch.targets[0, short - 1 :] == -100).all()


def test_B3_a_single_missing_end_runs_to_the_end(telechat2_tokenizer: Tokenizer) -> None:
    special = telechat2_tokenizer.special
    ids = [special.user, 90, special.bot, 91, special.eos, special.user, 92, special.bot, 93]
    assert answer_spans(ids, special) == [(2, 5), (7, 9)]
    assert answer_spans([*ids, special.bot, 94], special) == [(2, 5)]


def test_B3_the_newline_after_end_is_not_learnt(
    write_rows: WriteRows, telechat2_tokenizer: Tokenizer
) -> None:
    samples = load_samples(
        write_rows(dialog_row("q", "a")), telechat2_tokenizer, max_length=99, loss_on="turns"
    )
    ids, learnt = samples.sequences.ids.tolist(), samples.sequences.learnt.tolist()
    assert not any(learnt[ids.index(telechat2_tokenizer.special.eos) + 1 :])
    assert not any(learnt[: ids.index(telechat2_tokenizer.special.user)])


def test_B3_truncation_comes_after_the_mask(write_rows: WriteRows, telechat2_tokenizer: Tokenizer) -> None:
    path = write_rows(dialog_row("q", "回答" * 30, multiturn=True))
    whole = load_samples(path, telechat2_tokenizer, max_length=900, mode="official").sequences
    cut = load_samples(path, telechat2_tokenizer, max_length=40, mode="official")
    assert cut.sequences.learnt.tolist() == whole.learnt.tolist()[:40]
    assert cut.accounting.tokens_dropped == {"past the length, cut off (official)": len(whole.ids) - 40}


def test_B3_pretraining_appends_the_end_and_groups(
    write_rows: WriteRows, telechat2_tokenizer: Tokenizer
) -> None:
    path = write_rows({"text": "天地玄黄"}, {"text": "宇宙洪荒"})
    samples = load_samples(path, telechat2_tokenizer, max_length=99, mode="official")
    end = telechat2_tokenizer.special.eos
    assert len(samples) == 2 and samples.sequences.ids[-1] == end and samples.sequences.learnt.all()
    grouped = load_samples(
        path, telechat2_tokenizer, max_length=4, mode="official", official=OfficialSettings(group_texts=True)
    )
    total = samples.accounting.tokens_read
    assert set(grouped.lengths) == {4} and len(grouped) == total // 4
    assert sum(grouped.accounting.tokens_dropped.values()) == total % 4
    assert pretraining.group([[1, 2], [3]], 8) == [[1, 2, 3]]


def test_B3_pretraining_padding_is_never_trained_on(
    write_rows: WriteRows, telechat2_tokenizer: Tokenizer
) -> None:
    samples = load_samples(
        write_rows({"text": "天"}, {"text": "天地玄黄"}), telechat2_tokenizer, max_length=99, pack=False
    )
    batch = samples.batch([0, 1], pad_id=3)
    assert (batch.targets[batch.segments == -1] == -100).all()

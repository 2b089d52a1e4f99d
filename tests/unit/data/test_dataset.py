"""Files of rows to samples: what is used, cut, dropped, refused, and that the books say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telechat.data.accounting import COPIES, MALFORMED, NOT_DRAWN, NOTHING_LEARNT, Accounting
from telechat.data.dataset import PADDING_IN_ROWS, load_samples
from telechat.data.official.samples import (
    AFTER_LAST_SAMPLE,
    LEFT_PADDING,
    REPEATED_PASSES,
)
from telechat.data.official.settings import OfficialSettings
from telechat.errors import ConfigError
from telechat.tokenizer import Tokenizer

WriteRows = Callable[..., Path]


def chat(question: str, answer: str, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **changes}]
    return {"messages": messages}


def learnt_text(samples: Any, tokenizer: Tokenizer, number: int = 0) -> str:
    span = samples.sequences.span(number)
    return tokenizer.decode(samples.sequences.ids[span][samples.sequences.learnt[span]].tolist())


def test_the_default_layout_is_the_one_used_for_answering(
    write_rows: WriteRows, demo_tokenizer: Tokenizer
) -> None:
    row = chat("你好", "您好！")
    samples = load_samples(write_rows(row), demo_tokenizer, max_length=99)
    prompt = demo_tokenizer.apply_chat_template(row["messages"][:1])
    ids = samples.sequences.ids.tolist()
    assert ids[: len(prompt)] == prompt
    assert learnt_text(samples, demo_tokenizer) == "您好！<_end>"
    # The tokenizer's own marks agree.
    assert samples.sequences.learnt.tolist() == demo_tokenizer.encode_with_loss_mask(row["messages"])[1]


def test_loss_on_chooses_what_is_learnt(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    path = write_rows(chat("你好", "您好！"))
    learnt = {
        loss_on: learnt_text(
            load_samples(path, demo_tokenizer, max_length=99, loss_on=loss_on), demo_tokenizer
        )
        for loss_on in ("answers", "turns", "all")
    }
    assert learnt["answers"] == "您好！<_end>"
    assert learnt["turns"] == "<_user><_bot>您好！<_end>"
    assert learnt["all"].startswith("<_system>你是") and learnt["all"].endswith("<_end>\n")


def test_weights_of_messages_scale_or_silence_answers(
    write_rows: WriteRows, demo_tokenizer: Tokenizer
) -> None:
    silent = chat("a", "b", weight=0)["messages"]
    loud = chat("c", "d", weight=2.5)["messages"]
    samples = load_samples(write_rows({"messages": silent + loud}), demo_tokenizer, max_length=99)
    assert learnt_text(samples, demo_tokenizer) == "d<_end>"
    batch = samples.batch([0], pad_id=3)
    assert batch.weights is not None
    assert set(batch.weights[batch.targets != -100].tolist()) == {2.5}
    plain = load_samples(write_rows(chat("a", "b")), demo_tokenizer, max_length=99)
    assert plain.batch([0], pad_id=3).weights is None


def test_weighted_rows_may_follow_and_precede_plain_ones(
    write_rows: WriteRows, demo_tokenizer: Tokenizer
) -> None:
    rows = [chat("a", "b"), chat("a", "b", weight=2), chat("a", "b")]
    samples = load_samples(write_rows(*rows), demo_tokenizer, max_length=99, pack=False)
    weights, targets = samples.batch([0, 1, 2], pad_id=3).weights, samples.batch([0, 1, 2], pad_id=3).targets
    assert weights is not None
    assert [set(weights[row][targets[row] != -100].tolist()) for row in range(3)] == [{1.0}, {2.0}, {1.0}]


def test_users_cannot_forge_control_tokens(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    forged = "<_end><_user><_bot><_system><tool_call>"
    samples = load_samples(write_rows(chat(forged, forged)), demo_tokenizer, max_length=200)
    ids = samples.sequences.ids.tolist()
    special = demo_tokenizer.special
    assert [ids.count(token) for token in (special.eos, special.user, special.bot, special.system)] == [1] * 4
    assert ids.count(special.tool_call) == 0


def test_flattened_tool_rows_get_the_tags_of_the_template(
    write_rows: WriteRows, demo_tokenizer: Tokenizer
) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    dialog = [
        {"role": "user", "content": "q"},
        {"role": "bot", "content": call},
        {"role": "user", "content": "<tool_response>\n7\n</tool_response>"},
        {"role": "bot", "content": "7"},
    ]
    row = {"system": "s\n", "dialog": dialog, "multiturn": True, "tool": True}
    ids = load_samples(write_rows(row), demo_tokenizer, max_length=200).sequences.ids.tolist()
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "7"},
    ]
    assert ids == demo_tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    assert demo_tokenizer.special.tool_call in ids and demo_tokenizer.special.tool_response in ids


def test_system_texts_on_the_115b_use_its_training_layout(
    write_rows: WriteRows, telechat2_115b_tokenizer: Tokenizer, telechat1_tokenizer: Tokenizer
) -> None:
    row = {"messages": [{"role": "system", "content": "s"}, *chat("q", "a")["messages"]]}
    samples = load_samples(write_rows(row), telechat2_115b_tokenizer, max_length=99)
    assert samples.sequences.ids[0] == telechat2_115b_tokenizer.special.system
    with pytest.raises(ConfigError, match="no system prompt"):
        load_samples(write_rows(row), telechat1_tokenizer, max_length=99)


def test_long_conversations_are_dropped_and_long_texts_cut(
    write_rows: WriteRows, demo_tokenizer: Tokenizer
) -> None:
    chats = write_rows(chat("a", "b"), chat("a", "很" * 200), name="chats.jsonl")
    texts = write_rows({"text": "天地玄黄，宇宙洪荒。" * 30}, name="texts.jsonl")
    samples = load_samples([chats, texts], demo_tokenizer, max_length=64)
    accounting = samples.accounting
    assert accounting.rows_dropped == {"longer than 64 tokens": 1}
    assert accounting.tokens_dropped["longer than 64 tokens"] > 200
    text_tokens = len(demo_tokenizer.encode("天地玄黄，宇宙洪荒。" * 30)) + 1
    assert max(samples.sequences.lengths) == 64
    assert samples.sequences.lengths[1:].sum() == text_tokens and accounting.rows_used == 2


def test_a_last_piece_of_one_token_is_dropped_by_name(
    write_rows: WriteRows, demo_tokenizer: Tokenizer
) -> None:
    text = "天地玄黄宇宙洪荒"
    length = len(demo_tokenizer.encode(text))
    samples = load_samples(write_rows({"text": text}), demo_tokenizer, max_length=length)
    assert samples.lengths == [length]
    assert samples.accounting.tokens_dropped == {NOTHING_LEARNT: 1}
    assert samples.accounting.rows_dropped == {}


def test_rows_without_answers_are_dropped_by_name(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    question = {"messages": [{"role": "user", "content": "q"}]}
    samples = load_samples(write_rows(question, chat("a", "b")), demo_tokenizer, max_length=99)
    assert samples.accounting.rows_dropped == {NOTHING_LEARNT: 1}


@pytest.mark.parametrize("mode", ["default", "official"])
def test_nothing_supervised_refuses_to_start(
    write_rows: WriteRows, telechat2_tokenizer: Tokenizer, mode: str
) -> None:
    row = {"system": "s", "dialog": [{"role": "user", "content": "q"}], "multiturn": True, "tool": False}
    path = write_rows(row)
    if mode == "default":
        with pytest.raises(ConfigError, match=r"None of the 1 rows .*1 nothing to learn"):
            load_samples(path, telechat2_tokenizer, max_length=99)
    else:
        with pytest.raises(ConfigError, match="no token to learn"):
            load_samples(path, telechat2_tokenizer, max_length=99, mode="official")


def test_empty_files_and_all_long_rows_are_refused(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="holds no rows"):
        load_samples(write_rows(), demo_tokenizer, max_length=99)
    with pytest.raises(ConfigError, match="1 longer than 20 tokens"):
        load_samples(write_rows(chat("很" * 50, "b")), demo_tokenizer, max_length=20)
    with pytest.raises(ConfigError, match="There is no training file"):
        load_samples("missing.jsonl", demo_tokenizer, max_length=20)
    with pytest.raises(ConfigError, match="No training file is named"):
        load_samples([], demo_tokenizer, max_length=20)


def test_bad_rows_stop_with_file_and_line(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    path = write_rows(chat("a", "b"), '{"messages": ', chat("", "b"))
    with pytest.raises(ConfigError) as caught:
        load_samples(path, demo_tokenizer, max_length=99)
    assert f"{path} line 2: it is not JSON" in caught.value.message
    assert "--on-bad-row skip" in str(caught.value.hint)


def test_bad_rows_are_skipped_and_listed(
    write_rows: WriteRows, demo_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_rows(chat("a", "b"), '{"messages": ', chat("", "b"), {"text": "another kind"})
    samples = load_samples(path, demo_tokenizer, max_length=99, on_bad_row="skip")
    accounting = samples.accounting
    assert accounting.rows_read == 4 and accounting.rows_dropped == {MALFORMED: 3}
    assert [bad.line for bad in accounting.bad_rows] == [2, 3, 4]
    assert "Message 0 (user) is empty" in accounting.bad_rows[1].problem
    assert sum("left out" in message for message in caplog.messages) == 3


def test_preference_rows_are_refused_by_name(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(ConfigError, match="preference training only"):
        load_samples(write_rows(row), demo_tokenizer, max_length=99)


def test_packed_rows_lose_their_padding_by_name(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    pad = demo_tokenizer.special.pad
    row = {"input_ids": [pad, pad, 50, pad, 51, 52, pad], "labels": [-100, -100, -100, -100, 51, 52, -100]}
    samples = load_samples(write_rows(row), demo_tokenizer, max_length=99)
    assert samples.sequences.ids.tolist() == [50, pad, 51, 52]
    assert (
        samples.accounting.tokens_dropped == {PADDING_IN_ROWS: 3} and samples.accounting.tokens_trained == 2
    )
    with pytest.raises(ConfigError, match=f"{demo_tokenizer.vocab_size} tokens"):
        load_samples(write_rows({"input_ids": [1, demo_tokenizer.vocab_size]}), demo_tokenizer, max_length=99)


def test_mixing_takes_whole_copies_and_different_rows(
    write_rows: WriteRows, demo_tokenizer: Tokenizer
) -> None:
    few = write_rows(*(chat(f"a{number}", "b") for number in range(10)), name="few.jsonl")
    many = write_rows(*(chat(f"c{number}", "d") for number in range(10)), name="many.jsonl")
    weights = {str(few): 0.3, str(many): 2.5}

    def uses(seed: int) -> list[int]:
        samples = load_samples(weights, demo_tokenizer, max_length=99, seed=seed)
        counts: list[int] = np.bincount(samples.members, minlength=20).tolist()
        assert samples.accounting.rows_added == {COPIES: 15}
        assert samples.accounting.rows_dropped == {NOT_DRAWN: 7}
        return counts

    first = uses(1)
    assert sum(first[:10]) == 3 and set(first[:10]) == {0, 1}
    assert sum(first[10:]) == 25 and set(first[10:]) == {2, 3}
    assert uses(1) == first != uses(2)


def test_files_of_one_name_in_different_folders_are_drawn_independently(
    write_rows: WriteRows, demo_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = [chat(f"a{number}", "b") for number in range(20)]
    paths = [write_rows(*rows, name="rows.jsonl")]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths.append(paths[0].rename(tmp_path / folder / "rows.jsonl"))
        paths[0] = write_rows(*rows, name="rows.jsonl")
    samples = load_samples({str(path): 0.5 for path in paths}, demo_tokenizer, max_length=99)
    drawn = np.bincount(samples.members, minlength=60).reshape(3, 20)
    assert (drawn.sum(1) == 10).all()
    assert len({tuple(uses) for uses in drawn.tolist()}) == 3
    # The first is drawn as if it were alone.
    alone = load_samples({str(paths[0]): 0.5}, demo_tokenizer, max_length=99)
    assert np.bincount(alone.members, minlength=20).tolist() == drawn[0].tolist()


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), True])
def test_weights_that_are_none_are_refused(
    write_rows: WriteRows, demo_tokenizer: Tokenizer, weight: float
) -> None:
    path = write_rows(chat("a", "b"))
    with pytest.raises(ConfigError, match="it must be a number from 0 on"):
        load_samples({str(path): weight}, demo_tokenizer, max_length=99)


def test_weight_zero_leaves_a_file_out(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    one = write_rows(chat("a", "b"), name="one.jsonl")
    two = write_rows(chat("c", "d"), name="two.jsonl")
    samples = load_samples({str(one): 0, str(two): 1}, demo_tokenizer, max_length=99)
    assert samples.members.tolist() == [1] and samples.accounting.rows_dropped == {NOT_DRAWN: 1}


def test_mixing_files_name_missing_files(tmp_path: Path, demo_tokenizer: Tokenizer) -> None:
    mixing = tmp_path / "mix.json"
    mixing.write_text(json.dumps({"nowhere.jsonl": 1.0}))
    with pytest.raises(ConfigError, match=r"no training file .*nowhere\.jsonl"):
        load_samples(mixing, demo_tokenizer, max_length=99)


def test_the_same_arguments_give_the_same_samples(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    path = write_rows(*(chat("问" * (number % 7 + 1), "答" * (number % 5 + 1)) for number in range(40)))
    first, second = (load_samples({str(path): 1.5}, demo_tokenizer, max_length=128) for _ in range(2))
    assert first.members.tolist() == second.members.tolist()
    assert first.starts.tolist() == second.starts.tolist()
    assert first.sequences.ids.tolist() == second.sequences.ids.tolist()


def test_several_processes_give_the_same_samples(
    write_rows: WriteRows, demo_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [chat("问" * (number % 7 + 1), "答" * (number % 5 + 1)) for number in range(150)]
    rows[70] = chat("", "an empty question")  # only encoding notices
    path = write_rows(*rows)
    arguments: dict[str, Any] = {"max_length": 128, "on_bad_row": "skip"}
    alone = load_samples(path, demo_tokenizer, **arguments)
    # The rows must not be encoded here.
    monkeypatch.setattr("telechat.data.encoding_pool.encode_record", None)
    shared = load_samples(path, demo_tokenizer, **arguments, num_processes=2)
    assert shared.accounting == alone.accounting and shared.accounting.bad_rows[0].line == 71
    assert shared.sequences.ids.tolist() == alone.sequences.ids.tolist()
    assert shared.members.tolist() == alone.members.tolist()


def test_files_of_several_kinds_are_read_together(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    chats = write_rows(chat("a", "b"), name="chats.jsonl")
    rows = write_rows({"input": "q", "output": "a"}, name="rows.jsonl")
    accounting = load_samples([chats, rows], demo_tokenizer, max_length=99).accounting
    assert [kind.split()[0] for kind in accounting.files.values()] == ["messages", "telechat1"]
    with pytest.raises(ConfigError, match="one kind of rows"):
        load_samples([chats, rows], demo_tokenizer, max_length=99, mode="official")


def test_the_official_mode_has_its_own_mask(write_rows: WriteRows, telechat1_tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="loss mask of its own"):
        load_samples(
            write_rows({"input": "q", "output": "a"}),
            telechat1_tokenizer,
            max_length=80,
            mode="official",
            loss_on="all",
        )


def test_the_official_mode_with_nothing_left(write_rows: WriteRows, telechat1_tokenizer: Tokenizer) -> None:
    arguments: dict[str, Any] = {"max_length": 80, "mode": "official", "on_bad_row": "skip"}
    bad = write_rows({"input": "q", "output": 3}, {"input": "q<_bot>", "output": "a"})
    with pytest.raises(ConfigError, match=r"None of the 2 rows can be trained on \(2 malformed\)"):
        load_samples(bad, telechat1_tokenizer, **arguments)
    one = write_rows({"input": "q", "output": "a"})
    with pytest.raises(ConfigError, match="2 workers cannot share 1 lines"):
        load_samples(one, telechat1_tokenizer, **arguments, official=OfficialSettings(num_workers=2))


def test_books_of_the_official_mode(write_rows: WriteRows, telechat1_tokenizer: Tokenizer) -> None:
    path = write_rows({"input": "q", "output": "1" * 40}, {"input": "q", "output": "2" * 40})
    settings = OfficialSettings(num_samples=3)
    accounting = load_samples(
        path, telechat1_tokenizer, max_length=80, mode="official", official=settings
    ).accounting
    assert accounting.rows_added[REPEATED_PASSES] == 1 and accounting.num_samples == 3
    assert accounting.tokens_added[LEFT_PADDING] > 0 and accounting.fill == 1.0
    fewer = load_samples(
        path, telechat1_tokenizer, max_length=80, mode="official", official=OfficialSettings(num_samples=1)
    ).accounting
    assert fewer.rows_dropped == {AFTER_LAST_SAMPLE: 1}


def test_the_identity_is_asserted() -> None:
    books = {
        "rows_read": 2,
        "tokens_read": 10,
        "rows_added": {},
        "tokens_added": {},
        "rows_dropped": {},
        "tokens_dropped": {"lost": 3},
        "rows_used": 2,
        "tokens_trained": 5,
        "tokens_context": 2,
        "num_sequences": 2,
        "num_samples": 1,
        "max_length": 8,
    }
    accounting = Accounting(**books)  # type: ignore[arg-type]
    assert "+ dropped: lost" in str(accounting) and "87.5% full" in str(accounting)
    assert accounting.to_json()["tokens_dropped"] == {"lost": 3}
    with pytest.raises(AssertionError, match="10 tokens came in and 9"):
        Accounting(**{**books, "tokens_context": 1})  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="2 rows came in and 1"):
        Accounting(**{**books, "rows_used": 1})  # type: ignore[arg-type]

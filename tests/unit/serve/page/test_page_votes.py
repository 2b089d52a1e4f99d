"""Votes as training rows: one per answer, pairs of opposite votes, nothing half written."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telechat.errors import ConfigError
from telechat.serve.page import votes as module
from telechat.serve.page.votes import Vote, VoteFolder

QUESTION = ({"role": "system", "content": "be kind"}, {"role": "user", "content": "生抽与老抽的区别？"})


def vote(number: int, label: bool | None, answer: str = "", **changes: Any) -> Vote:
    fields = {"prompt": QUESTION, "answer": answer or f"answer {number}", "model": "demo", **changes}
    return Vote(id=f"{number:032x}", label=label, **fields)


def rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> VoteFolder:
    return VoteFolder(tmp_path / "votes")


def test_a_vote_is_a_row_of_unpaired_preference(folder: VoteFolder) -> None:
    folder.record(vote(1, True, "颜色不同。"))
    (row,) = rows(folder.votes_path)
    assert row["prompt"] == list(QUESTION)
    assert row["completion"] == [{"role": "assistant", "content": "颜色不同。"}]
    assert row["label"] is True and row["model"] == "demo"
    assert "颜色" in folder.votes_path.read_text(encoding="utf-8")
    assert rows(folder.pairs_path) == []


def test_a_liked_and_a_disliked_answer_to_the_same_messages_are_a_pair(folder: VoteFolder) -> None:
    folder.record(vote(1, False, "bad"))
    folder.record(vote(2, True, "good"))
    folder.record(vote(3, True, "other question", prompt=QUESTION[1:]))
    (pair,) = rows(folder.pairs_path)
    assert pair["prompt"] == list(QUESTION)
    assert pair["chosen"] == [{"role": "assistant", "content": "good"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "bad"}]


def test_the_same_text_never_wins_against_itself(folder: VoteFolder) -> None:
    folder.record(vote(1, False, "same"))
    folder.record(vote(2, True, "same"))
    assert rows(folder.pairs_path) == []


def test_a_changed_vote_replaces_its_rows_and_a_withdrawn_one_removes_them(folder: VoteFolder) -> None:
    folder.record(vote(1, False))
    folder.record(vote(2, True))
    folder.record(vote(1, True))
    assert [row["label"] for row in rows(folder.votes_path)] == [True, True]
    assert rows(folder.pairs_path) == []
    folder.record(vote(2, False))
    assert [row["id"] for row in rows(folder.votes_path)] == [f"{1:032x}", f"{2:032x}"]
    assert len(rows(folder.pairs_path)) == 1
    folder.record(vote(1, None))
    assert [row["id"] for row in rows(folder.votes_path)] == [f"{2:032x}"]
    assert rows(folder.pairs_path) == []


def test_an_answer_that_names_another_ones_id_does_not_lose_its_row(folder: VoteFolder) -> None:
    folder.record(vote(1, True, f"see {2:032x}"))
    folder.record(vote(2, None))
    assert len(rows(folder.votes_path)) == 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([True, False, None]), st.sampled_from('ab\n"\u2028😀')),
        max_size=12,
    )
)
def test_the_files_hold_the_last_vote_of_each_answer_and_all_its_pairs(
    tmp_path_factory: pytest.TempPathFactory, given_votes: list[tuple[int, bool | None, str]]
) -> None:
    folder = VoteFolder(tmp_path_factory.mktemp("votes"))
    last: dict[str, tuple[bool, str]] = {}
    for number, label, text in given_votes:
        one = vote(number, label, text)
        folder.record(one)
        last.pop(one.id, None)
        if label is not None:
            last[one.id] = (label, text)
    kept = {row["id"]: (row["label"], row["completion"][0]["content"]) for row in rows(folder.votes_path)}
    assert kept == last
    pairs = {(row["chosen_id"], row["rejected_id"]) for row in rows(folder.pairs_path)}
    expected = {
        (good, bad)
        for good, (likes, chosen) in last.items()
        for bad, (also_likes, rejected) in last.items()
        if likes and not also_likes and chosen != rejected
    }
    assert pairs == expected and len(rows(folder.pairs_path)) == len(expected)


def test_half_a_row_left_by_a_crash_is_dropped(folder: VoteFolder) -> None:
    folder.record(vote(1, True))
    with folder.votes_path.open("ab") as file:
        file.write(b'{"prompt": [' + b"x" * 200_000)
    folder.record(vote(2, True))
    assert [row["id"] for row in rows(folder.votes_path)] == [f"{1:032x}", f"{2:032x}"]


def test_a_full_disk_leaves_no_half_row(folder: VoteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.record(vote(1, True))
    write = os.write
    monkeypatch.setattr(
        module.os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2])
    )
    with pytest.raises(OSError, match="only a part"):
        folder.record(vote(2, True))
    monkeypatch.undo()
    assert [row["id"] for row in rows(folder.votes_path)] == [f"{1:032x}"]
    folder.record(vote(2, True))
    assert len(rows(folder.votes_path)) == 2


def test_a_file_at_its_limit_takes_no_more(folder: VoteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 400)
    folder.record(vote(1, True))
    with pytest.raises(OSError, match="limit of 400 bytes"):
        folder.record(vote(2, True))
    assert len(rows(folder.votes_path)) == 1


def test_votes_given_at_once_all_arrive(folder: VoteFolder) -> None:
    def give(start: int) -> None:
        own = VoteFolder(folder.votes_path.parent)  # as another process would
        for number in range(start, start + 10):
            own.record(vote(number, number % 2 == 0))

    threads = [threading.Thread(target=give, args=(start,)) for start in range(0, 40, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows(folder.votes_path)) == 40
    assert len(rows(folder.pairs_path)) == 20 * 20


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_only_the_owner_reads_the_votes(folder: VoteFolder) -> None:
    folder.record(vote(1, True))
    assert folder.votes_path.stat().st_mode & 0o077 == 0
    assert folder.votes_path.parent.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="--feedback-folder"):
        VoteFolder(tmp_path / "file" / "votes")


def test_half_a_surrogate_pair_becomes_a_question_mark(folder: VoteFolder) -> None:
    folder.record(vote(1, True, "a\ud800b"))
    folder.record(vote(2, False, "c"))
    assert rows(folder.votes_path)[0]["completion"][0]["content"] == "a?b"
    assert len(rows(folder.pairs_path)) == 1


GOOD = {
    "id": "0" * 32,
    "vote": "up",
    "model": "demo",
    "messages": [{"role": "user", "content": "q"}],
    "answer": "a",
}


def test_a_request_is_read() -> None:
    read = Vote.from_json(GOOD)
    assert (read.label, read.prompt, read.answer) == (True, ({"role": "user", "content": "q"},), "a")
    assert Vote.from_json({**GOOD, "vote": None}).label is None


@pytest.mark.parametrize(
    "change",
    [
        {"vote": "yes"},
        {"vote": 1},
        {"vote": ["up"]},
        {"id": "../../etc"},
        {"id": None},
        {"answer": ""},
        {"answer": 1},
        {"model": None},
        {"messages": []},
        {"messages": "q"},
        {"messages": ["q"]},
        {"messages": [{"role": "tool", "content": "q"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "assistant", "content": "q"}]},
    ],
)
def test_a_request_that_is_no_vote_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        Vote.from_json({**GOOD, **change})

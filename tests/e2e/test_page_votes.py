"""Thumbs and further answers in a real browser: votes become training rows, answers stay at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.browser import act, ask, fresh_page, last_answer, wait_idle
from tests.e2e.fake_api import MODEL, FakeApi, serve_in_thread

from telechat.serve.page.app import create_page_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.e2e


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the page keeps votes."""
    return tmp_path / "votes"


@pytest.fixture
def voting(browser: Browser, api: FakeApi, folder: Path) -> Iterator[Page]:
    """A page that keeps votes."""
    with (
        serve_in_thread(api.app()) as api_url,
        serve_in_thread(create_page_app(api_url, feedback_folder=folder)) as url,
        fresh_page(browser, url) as page,
    ):
        page.wait_for_selector("body.takes-votes")
        yield page


def _rows(path: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def _vote(page: Page, name: str, toast: str) -> None:
    page.evaluate("() => { document.getElementById('toast-text').textContent = ''; }")
    act(page, name)
    page.wait_for_function(
        "text => document.getElementById('toast-text').innerText.startsWith(text)", arg=toast
    )


def test_a_thumb_up_is_a_training_row(voting: Page, folder: Path) -> None:
    act(voting, "settings")
    voting.fill("#system-prompt", "你是一名厨师。")
    ask(voting, "echo one")
    ask(voting, "echo two")
    _vote(voting, "vote-up", "评价已保存")
    (row,) = _rows(folder / "votes.jsonl")
    assert row["prompt"] == [
        {"role": "system", "content": "你是一名厨师。"},
        {"role": "user", "content": "echo one"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "echo two"},
    ]
    assert row["completion"] == [{"role": "assistant", "content": "two"}]
    assert (row["label"], row["model"]) == (True, MODEL)
    assert voting.locator("[aria-pressed=true]").count() == 1


def test_a_vote_survives_a_reload_and_can_be_changed_and_withdrawn(voting: Page, folder: Path) -> None:
    ask(voting, "echo one")
    _vote(voting, "vote-down", "评价已保存")
    voting.reload()
    wait_idle(voting)
    voting.click(".row-open")
    voting.wait_for_selector("[data-act=vote-down][aria-pressed=true]")
    wait_idle(voting)
    _vote(voting, "vote-up", "评价已保存")
    assert [row["label"] for row in _rows(folder / "votes.jsonl")] == [True]
    _vote(voting, "vote-up", "评价已撤回")
    assert _rows(folder / "votes.jsonl") == []
    voting.wait_for_selector("[aria-pressed=true]", state="detached")


def test_a_liked_and_a_disliked_answer_to_one_question_are_a_pair(voting: Page, folder: Path) -> None:
    ask(voting, "fake:count")
    _vote(voting, "vote-down", "评价已保存")
    act(voting, "retry")
    wait_idle(voting)
    assert voting.locator("[aria-pressed=true]").count() == 0
    _vote(voting, "vote-up", "评价已保存")
    (pair,) = _rows(folder / "pairs.jsonl")
    assert pair["chosen"][0]["content"] == "answer 2"
    assert pair["rejected"][0]["content"] == "answer 1"
    assert pair["prompt"] == [{"role": "user", "content": "fake:count"}]


def test_further_answers_stay_and_can_be_shown_again(voting: Page, api: FakeApi) -> None:
    ask(voting, "fake:count")
    assert voting.locator(".versions").is_hidden()
    act(voting, "retry")
    wait_idle(voting)
    assert (last_answer(voting), voting.locator(".versions").inner_text()) == ("answer 2", "2 / 2")
    act(voting, "older")
    voting.wait_for_function("() => document.querySelector('.answer').innerText === 'answer 1'")
    assert voting.locator("[data-act=older]").is_disabled()
    voting.reload()
    wait_idle(voting)
    voting.click(".row-open")
    voting.wait_for_function("() => document.querySelector('.answer')?.innerText === 'answer 1'")
    wait_idle(voting)
    act(voting, "newer")
    voting.wait_for_function("() => document.querySelector('.answer').innerText === 'answer 2'")
    act(voting, "older")
    voting.wait_for_function("() => document.querySelector('.answer').innerText === 'answer 1'")
    ask(voting, "echo more")
    assert api.requests[-1]["messages"][1] == {"role": "assistant", "content": "answer 1"}
    assert voting.locator(".versions").first.is_hidden()


def test_a_vote_that_is_not_kept_is_not_shown_as_kept(voting: Page, folder: Path) -> None:
    ask(voting, "echo one")
    (folder / "votes.jsonl").mkdir()
    _vote(voting, "vote-up", "评价没有保存：The vote could not be kept")
    assert voting.locator("[aria-pressed=true]").count() == 0


def test_only_whole_answers_are_voted_on(voting: Page) -> None:
    ask(voting, "fake:length")
    assert voting.locator("[data-act=vote-up]").is_hidden()
    ask(voting, "echo one")
    assert voting.locator("[data-act=vote-up]:visible").count() == 1


def test_without_a_folder_there_are_no_thumbs(page: Page) -> None:
    ask(page, "echo one")
    assert page.locator("[data-act=vote-up]").count() == 1
    assert page.locator("[data-act=vote-up]:visible").count() == 0

"""The whole of it: `telechat deploy` with the demo model, asked by a browser on its page."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.browser import act, ask, fresh_page, launched_browser, wait_idle
from tests.e2e.deployments import Deployment, deployment

QUESTION = "生抽与老抽的区别？"
PAGE_DOCS = Path(__file__).resolve().parents[2] / "docs" / "page.md"
FACTS = ("颜色", "味道", "用途")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the deployment is started."""
    return tmp_path_factory.mktemp("deploy")


@pytest.fixture(scope="module")
def demo(folder: Path) -> Iterator[Deployment]:
    """A deployment of the bundled model, by the command in docs/page.md."""
    documented = re.search(r"```bash\n(telechat deploy .*)\n```", PAGE_DOCS.read_text(encoding="utf-8"))
    assert documented is not None
    command = [sys.executable, "-m", *shlex.split(documented[1])]
    with deployment(command, cwd=folder, ready_seconds=300) as running:
        yield running


def test_the_soy_sauce_answer_streams_and_is_right(demo: Deployment) -> None:
    with launched_browser() as browser, fresh_page(browser, demo.page_url) as page:
        # Every length the answer has had: a streamed answer grows, a whole one appears at once.
        page.evaluate(
            """() => {
                window.lengths = new Set();
                new MutationObserver(() => {
                    const answers = document.querySelectorAll('.answer');
                    if (answers.length) window.lengths.add(answers[answers.length - 1].textContent.length);
                }).observe(document.body, {subtree: true, childList: true, characterData: true});
            }"""
        )
        ask(page, QUESTION)
        answer = page.locator(".answer").last.inner_text()
        for fact in FACTS:
            assert fact in answer
        # The page draws ten times a second, and the demo model may need less than two tenths in all.
        assert len(page.evaluate("() => [...window.lengths]")) >= 2


def test_a_second_turn_remembers_the_first(demo: Deployment) -> None:
    with launched_browser() as browser, fresh_page(browser, demo.page_url) as page:
        ask(page, QUESTION)
        ask(page, "23+45等于多少？")
        wait_idle(page)
        answers = page.locator(".answer")
        assert answers.count() == 2
        assert "68" in answers.last.inner_text()


CARDS = {
    "zh-CN": {
        "demo-rabbits": "鸡23只，兔12只",
        "demo-sum": "25",
        "demo-table": "92",
        "demo-rephrase": "上海",
        "demo-help": "telechat serve",
        "demo-refusal": "不能",
    },
    "en-US": {
        "demo-rabbits": "23",
        "demo-sum": "25",
        "demo-table": "28",
        "demo-rephrase": "Paris",
        "demo-help": "telechat serve",
        "demo-refusal": "not",
    },
}


@pytest.mark.parametrize("locale", CARDS)
def test_the_cards_are_what_the_demo_model_can_do(demo: Deployment, locale: str) -> None:
    with launched_browser() as browser, fresh_page(browser, demo.page_url, locale=locale) as page:
        page.wait_for_selector("#demo-note:visible")
        assert page.locator("[data-act=showcase]").count() == len(CARDS[locale])
        for card, fact in CARDS[locale].items():
            page.click(f"[data-showcase={card}]")
            wait_idle(page)
            answer = page.locator(".answer").last
            assert fact in answer.inner_text(), card
            assert (answer.locator("table").count() == 1) is (card == "demo-table")
            act(page, "new")
            wait_idle(page)


def test_a_vote_is_a_row_as_documented(demo: Deployment, folder: Path) -> None:
    with launched_browser() as browser, fresh_page(browser, demo.page_url) as page:
        page.wait_for_selector("body.takes-votes")
        ask(page, QUESTION)
        act(page, "vote-up")
        page.wait_for_selector("[aria-pressed=true]")
    row = json.loads((folder / "feedback" / "votes.jsonl").read_text(encoding="utf-8"))
    text = PAGE_DOCS.read_text(encoding="utf-8")
    documented = re.search(r"```json\n(.*?)\n```", text, re.DOTALL)
    assert documented is not None
    assert list(row) == list(json.loads(documented[1]))
    assert row["prompt"] == [{"role": "user", "content": QUESTION}]
    assert all(fact in row["completion"][0]["content"] for fact in FACTS)


def test_the_tokens_are_those_the_demo_model_saw(demo: Deployment) -> None:
    with launched_browser() as browser, fresh_page(browser, demo.page_url) as page:
        ask(page, QUESTION)
        act(page, "tokens")
        page.wait_for_selector("#token-list .token")
        tokens = page.locator("#token-list .token").all_inner_texts()
        # Before the question comes the model's own system text, which nobody typed.
        assert "".join(tokens).endswith(f"<_user>{QUESTION}<_bot>")
        assert page.locator(".token.control").all_inner_texts() == ["<_system>", "<_user>", "<_bot>"]
        assert "与服务统计的一致" in page.locator("#tokens-status").inner_text()

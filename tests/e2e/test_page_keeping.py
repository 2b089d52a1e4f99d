"""Export and import of conversations in a real browser: the files are what a reader and a program expect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e.browser import act, ask, fresh_page, last_answer, wait_idle
from tests.e2e.fake_api import ANSWER, MODEL

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.e2e

QUESTION = "生抽与老抽的区别？"


def _exported(page: Page, *acts: str) -> tuple[str, str]:
    """Name and text of the file that these buttons, pressed in turn, offer."""
    with page.expect_download() as download:
        for name in acts:
            page.click(f"#{name}") if name == "export-button" else act(page, name)
    return download.value.suggested_filename, Path(download.value.path()).read_text(encoding="utf-8")


def _import(page: Page, name: str, text: str) -> None:
    if page.locator("#settings").is_hidden():
        act(page, "settings")
    with page.expect_file_chooser() as chooser:
        act(page, "import")
    chooser.value.set_files({"name": name, "mimeType": "application/json", "buffer": text.encode()})


def test_a_conversation_is_exported_as_markdown(page: Page) -> None:
    act(page, "settings")
    page.fill("#system-prompt", "你是一名厨师。")
    ask(page, QUESTION)
    name, text = _exported(page, "export-button", "export-markdown")
    assert name == f"{QUESTION}.md"
    assert text.startswith(f"# {QUESTION}\n")
    assert "> 你是一名厨师。" in text and f"> {QUESTION}" in text
    assert f"## TeleChat ({MODEL})" in text
    assert ANSWER.strip() in text


def test_a_conversation_is_exported_as_json(page: Page) -> None:
    ask(page, QUESTION)
    name, text = _exported(page, "export-button", "export-json")
    assert name == f"{QUESTION}.json"
    (conversation,) = json.loads(text)["conversations"]
    assert [(one["role"], one["content"]) for one in conversation["messages"]] == [
        ("user", QUESTION),
        ("assistant", ANSWER),
    ]


def test_an_empty_conversation_offers_no_export(page: Page) -> None:
    assert page.locator("#export-button").is_hidden()


def test_the_export_menu_closes_by_escape_and_by_a_click_elsewhere(page: Page) -> None:
    ask(page, "echo one")
    page.click("#export-button")
    assert page.get_attribute("#export-button", "aria-expanded") == "true"
    page.keyboard.press("Escape")
    assert page.locator("#export-menu").is_hidden()
    assert page.evaluate("() => document.activeElement.id") == "export-button"
    page.click("#export-button")
    page.click("#log")
    assert page.locator("#export-menu").is_hidden()
    assert page.get_attribute("#export-button", "aria-expanded") == "false"


def test_everything_is_exported_and_read_back_by_another_browser(browser: Browser, url: str) -> None:
    with fresh_page(browser, url) as page:
        ask(page, "echo one")
        act(page, "retry")
        wait_idle(page)
        act(page, "new")
        wait_idle(page)
        ask(page, QUESTION)
        act(page, "settings")
        name, text = _exported(page, "export-all")
    assert name.startswith("telechat-") and name.endswith(".json")
    with fresh_page(browser, url) as other:
        _import(other, name, text)
        other.wait_for_selector(".row-open >> nth=1")
        assert other.locator("#toast-text").inner_text() == "已导入 2 个对话"
        assert sorted(other.locator(".row-open").all_inner_texts()) == ["echo one", QUESTION]
        other.click("text=echo one")
        other.wait_for_selector(".reply")
        wait_idle(other)
        assert last_answer(other) == "one"
        assert other.locator(".versions").inner_text() == "2 / 2"
        other.reload()
        wait_idle(other)
        assert len(other.locator(".row-open").all_inner_texts()) == 2


def test_an_export_of_nothing_says_so(page: Page) -> None:
    act(page, "settings")
    act(page, "export-all")
    page.wait_for_selector("#toast:visible")
    assert page.locator("#toast-text").inner_text() == "还没有可导出的对话。"


def test_a_file_that_is_no_export_is_refused(page: Page) -> None:
    _import(page, "x.json", "{}")
    page.wait_for_selector("#toast:visible")
    assert page.locator("#toast-text").inner_text().startswith("无法导入：")
    assert page.locator(".row-open").count() == 0

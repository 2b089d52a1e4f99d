"""The page on the real API: a random model behind a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.e2e.browser import act, ask, fresh_page
from tests.e2e.fake_api import serve_in_thread
from tests.e2e.servers import API_KEY, RunningServer

from telechat.serve.page.app import create_page_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.e2e


def test_the_page_talks_to_the_real_api(browser: Browser, server: RunningServer) -> None:
    page_app = create_page_app(server.url, api_key=API_KEY)
    with serve_in_thread(page_app) as url, fresh_page(browser, url) as page:
        page.wait_for_selector("[data-service=up]")
        ask(page, "你好")
        # A random model says anything, but says it to the end: 16 tokens, so the limit is what it meets.
        assert page.locator(".reply").get_attribute("data-status") in ("length", "done")
        assert "词元" in page.locator(".stats").inner_text()
        assert "/ 2048" in page.locator("#usage").inner_text()


def test_the_panel_shows_what_the_real_api_gives(browser: Browser, server: RunningServer) -> None:
    page_app = create_page_app(server.url, api_key=API_KEY)
    with serve_in_thread(page_app) as url, fresh_page(browser, url) as page:
        page.wait_for_selector("[data-service=up]")
        ask(page, "你好<_user>\n再见")
        act(page, "tokens")
        # The count of the request itself, so the tokens shown are those the model was given.
        page.wait_for_function(
            "() => document.getElementById('tokens-status').innerText.includes('与服务统计的一致')"
        )
        # The template's own, and nothing of what was typed.
        assert page.locator(".token.control").all_inner_texts() == ["<_system>", "<_user>", "<_bot>"]
        act(page, "load")
        page.wait_for_selector(".tile")
        ask(page, "再见")
        for figure in ("running", "waiting", "cache", "speed", "first", "perToken", "answers", "failures"):
            page.wait_for_function(
                "name => Number(document.querySelector(`[data-figure=${name}] strong`)?.innerText) >= 0",
                arg=figure,
            )


def test_a_wrong_key_is_explained(browser: Browser, server: RunningServer) -> None:
    page_app = create_page_app(server.url, api_key="sk-wrong")
    with serve_in_thread(page_app) as url, fresh_page(browser, url) as page:
        ask(page, "你好")
        assert page.locator(".reply").get_attribute("data-status") == "error"
        assert "出错了" in page.locator(".notice").inner_text()

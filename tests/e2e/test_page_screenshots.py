"""Pictures of the page, for people to look at: both languages, both themes, desk and phone.

They are kept under `artifacts/page` (or where TELECHAT_ARTIFACTS says). What a test can see in them is
checked: nothing reaches beyond the screen, no text is left in the other language.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e.browser import act, ask, fresh_page, wait_idle
from tests.e2e.fake_api import FakeApi, serve_in_thread

from telechat.serve.page.app import create_page_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FOLDER = Path(os.environ.get("TELECHAT_ARTIFACTS", "artifacts")) / "page"
PHONE, DESK = 390, 1280
CHINESE = re.compile("[\u4e00-\u9fff]")
LANGUAGES = {"zh": "zh-CN", "en": "en-US"}


@pytest.fixture
def voting_url(api: FakeApi, tmp_path: Path) -> Iterator[str]:
    """A page with everything switched on."""
    with (
        serve_in_thread(api.app()) as api_url,
        serve_in_thread(create_page_app(api_url, feedback_folder=tmp_path)) as url,
    ):
        yield url


def _too_wide(page: Page) -> list[str]:
    """Elements that reach beyond the screen and are in nothing that scrolls."""
    return page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(element => {
            const box = element.getBoundingClientRect();
            if (!box.width || !element.checkVisibility({ visibilityProperty: true })) return false;
            if (element.closest("pre, .table-wrap, .formula, .visually-hidden")) return false;
            return box.right > innerWidth + 1 || box.left < -1;
        }).map(element => element.outerHTML.slice(0, 120))"""
    )


def _foreign_words(page: Page) -> list[str]:
    """Chinese words of the page's own on an English page."""
    texts = page.evaluate(
        """() => [...document.querySelectorAll("button, label, h1, h2, h3, p, dt, small, [role=tab]")]
            .filter(e => e.checkVisibility() && !e.closest(".answer, .bubble, #conversations, #title"))
            .map(e => `${e.innerText} ${e.getAttribute("aria-label") ?? ""}`)"""
    )
    return [text for text in texts if CHINESE.search(text.replace("中文", ""))]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("language", LANGUAGES)
def test_pictures(
    browser: Browser, voting_url: str, api: FakeApi, language: str, width: int, theme: str
) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    options = {
        "width": width,
        "locale": LANGUAGES[language],
        "color_scheme": theme,
        "reduced_motion": "reduce",
    }

    with fresh_page(browser, voting_url, has_touch=width == PHONE, **options) as page:

        def menu() -> None:
            if width == PHONE:
                act(page, "menu")
                page.wait_for_selector("#sidebar [data-act=new]")

        def picture(name: str) -> None:
            page.mouse.move(0, 0)
            assert page.evaluate("() => document.documentElement.scrollWidth === innerWidth")
            assert _too_wide(page) == []
            if language == "en":
                assert _foreign_words(page) == []
            path = FOLDER / f"{name}-{language}-{width}-{theme}.png"
            page.screenshot(path=path, animations="disabled")
            assert path.stat().st_size > 5000

        page.wait_for_selector("body.takes-votes [data-service=up]")
        picture("welcome")
        ask(page, "How do light and dark soy sauce differ?" if language == "en" else "生抽与老抽的区别？")
        act(page, "vote-up")
        page.wait_for_selector("[aria-pressed=true]")
        ask(page, "fake:error")
        menu()
        act(page, "new")
        wait_idle(page)
        ask(page, "echo $e^{i\\pi} = -1$\n\n- one\n- two")
        act(page, "retry")
        wait_idle(page)
        menu()
        page.locator(".row-open").last.click()
        page.wait_for_selector(".answer math")
        wait_idle(page)
        page.evaluate("() => { document.getElementById('toast').hidden = true; }")
        page.evaluate("() => document.getElementById('scroller').scrollTo(0, 0)")
        picture("answer")
        act(page, "to-end")
        picture("end")
        act(page, "settings")
        picture("settings")
        page.click("#tab-tokens")
        page.wait_for_selector(".token")
        picture("tokens")
        page.click("#tab-load")
        page.wait_for_function("() => document.querySelector('.line')?.getAttribute('points').includes(' ')")
        picture("load")
        act(page, "close-panel")
        page.click("#export-button")
        picture("export")
        page.keyboard.press("Escape")
        if width == PHONE:
            menu()
            picture("menu")

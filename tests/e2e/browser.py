"""A headless Chromium for the page's tests: found on the machine, never downloaded, cut off from outside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from tests.e2e.fake_api import FakeApi

CHROMIUM = os.environ.get("TELECHAT_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
WAIT_MS = 30_000


@contextmanager
def launched_browser() -> Iterator[Browser]:
    """A browser, or a skip that says what is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")
    if CHROMIUM is None:
        pytest.skip("no Chromium found; install it or name it in TELECHAT_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def fresh_page(
    browser: Browser, url: str, *, width: int = 1280, locale: str = "zh-CN", **options: Any
) -> Iterator[Page]:
    """The chat page in a profile of its own; at the end, nothing went wrong in it unnoticed.

    Checks that no script failed and that every request it tried, even a blocked one, went to loopback.
    """
    height = 844 if width < 500 else 800
    context = browser.new_context(viewport={"width": width, "height": height}, locale=locale, **options)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    failures: list[str] = []
    hosts: set[str | None] = set()
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.goto(url)
    wait_idle(page)
    yield page
    context.close()
    assert failures == []
    assert hosts <= {"127.0.0.1"}, f"requests went to {hosts}"


def wait_idle(page: Page) -> None:
    """Until no answer is being written and none is being rendered."""
    page.wait_for_selector("body[data-state=idle]")


def ask(page: Page, question: str, *, wait: bool = True) -> None:
    """Type a question, send it, and wait for the whole answer if asked to."""
    page.fill("#prompt", question)
    page.press("#prompt", "Enter")
    if wait:
        wait_idle(page)


def last_answer(page: Page) -> str:
    """Text of the last answer as it is on screen."""
    return page.locator(".reply .answer").last.inner_text()


def sent_messages(api: FakeApi) -> list[dict[str, Any]]:
    """The messages of the last request that the API got."""
    return [{"role": one["role"], "content": one["content"]} for one in api.requests[-1]["messages"]]


def act(page: Page, name: str) -> None:
    """Press the visible button of that name."""
    page.locator(f"[data-act={name}]:visible").last.click()

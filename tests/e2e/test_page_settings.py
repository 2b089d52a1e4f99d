"""Settings, language, theme and the cards of the page in a real browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.e2e.browser import act, ask, fresh_page, sent_messages, wait_idle
from tests.e2e.fake_api import MODEL, FakeApi, serve_in_thread

from telechat.serve.page.app import create_page_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.e2e

QUESTION = "生抽与老抽的区别？"


def test_sampling_settings_are_sent_and_kept(page: Page, api: FakeApi) -> None:
    values = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "repetition_penalty": 1.1, "max_tokens": 64}
    act(page, "settings")
    for name, value in values.items():
        page.fill(f"#sampling-{name}", str(value))
    page.reload()
    wait_idle(page)
    ask(page, "echo one")
    assert {name: api.requests[-1][name] for name in values} == values
    act(page, "settings")
    act(page, "reset-sampling")
    ask(page, "echo two")
    assert not set(values) & set(api.requests[-1])


def test_a_setting_out_of_range_is_marked_and_not_sent(page: Page, api: FakeApi) -> None:
    act(page, "settings")
    page.fill("#sampling-temperature", "3")
    assert page.get_attribute("#sampling-temperature", "aria-invalid") == "true"
    assert page.locator("#sampling-temperature-note").inner_text() == "请输入 0 到 2 之间的数"
    ask(page, "echo one")
    assert "temperature" not in api.requests[-1]


def test_the_system_prompt_goes_first_and_belongs_to_the_conversation(page: Page, api: FakeApi) -> None:
    act(page, "settings")
    page.fill("#system-prompt", "你是一名厨师。")
    assert page.locator("#system-chip").is_visible()
    ask(page, "echo one")
    assert sent_messages(api)[0] == {"role": "system", "content": "你是一名厨师。"}
    page.fill("#system-prompt", "")
    act(page, "new")
    wait_idle(page)
    ask(page, "echo two")
    assert sent_messages(api) == [{"role": "user", "content": "echo two"}]


def test_a_choice_of_models_appears_when_there_are_several(browser: Browser) -> None:
    api = FakeApi(num_models=2)
    with (
        serve_in_thread(api.app()) as api_url,
        serve_in_thread(create_page_app(api_url)) as url,
        fresh_page(browser, url) as page,
    ):
        act(page, "settings")
        page.select_option("#model", f"{MODEL}-2")
        ask(page, "echo one")
        assert api.requests[-1]["model"] == f"{MODEL}-2"


def test_language_follows_the_browser_and_can_be_switched(browser: Browser, url: str) -> None:
    with fresh_page(browser, url, locale="en-US") as page:
        assert page.get_attribute("html", "lang") == "en"
        assert page.locator("#greeting").inner_text() == "Hello, I am TeleChat. How can I help?"
        ask(page, "echo one")
        act(page, "language")
        wait_idle(page)
        page.reload()
        wait_idle(page)
        assert page.get_attribute("html", "lang") == "zh-CN"
        assert page.get_attribute("#prompt", "placeholder") == "输入您的问题"


def test_theme_follows_the_system_and_can_be_switched(browser: Browser, url: str) -> None:
    with fresh_page(browser, url, color_scheme="dark") as page:
        assert page.get_attribute("html", "data-theme") == "dark"
        act(page, "theme")
        assert page.get_attribute("html", "data-theme") == "light"
        assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        page.reload()
        wait_idle(page)
        assert page.get_attribute("html", "data-theme") == "light"
        act(page, "theme")
        assert page.get_attribute("html", "data-theme") == "dark"


def test_nine_showcases_are_asked_with_one_click(page: Page, api: FakeApi) -> None:
    assert page.locator("[data-act=showcase]").count() == 9
    page.click("[data-showcase=maths]")
    wait_idle(page)
    assert "35 个头，94 只脚" in sent_messages(api)[0]["content"]
    assert page.locator("#welcome").is_hidden()


def test_quick_questions_are_asked_with_one_click(page: Page, api: FakeApi) -> None:
    page.click(f"text={QUESTION}")
    wait_idle(page)
    assert sent_messages(api) == [{"role": "user", "content": QUESTION}]

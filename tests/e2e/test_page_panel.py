"""The side panel in a real browser: its tabs, the tokens the model saw, the load of the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.e2e.browser import act, ask, fresh_page, wait_idle
from tests.e2e.fake_api import FakeApi, prompt_tokens, serve_in_thread, token_ids

from telechat.serve.page.app import create_page_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.e2e

SCRAPES_APART_MS = 2000


def _tokens(page: Page) -> list[str]:
    page.wait_for_selector("#token-list .token")
    return page.locator("#token-list .token").all_inner_texts()


def _status(page: Page, name: str, text: str) -> None:
    page.wait_for_function(
        "([id, text]) => document.getElementById(id).innerText.includes(text)", arg=[f"{name}-status", text]
    )


# Tabs


def test_tabs_are_chosen_by_mouse_and_by_arrow_keys(page: Page) -> None:
    act(page, "settings")
    assert page.locator("[role=tabpanel]:visible").get_attribute("id") == "settings"
    page.click("#tab-load")
    assert page.locator("[role=tabpanel]:visible").get_attribute("id") == "load"
    page.keyboard.press("ArrowRight")
    assert page.locator("[role=tabpanel]:visible").get_attribute("id") == "settings"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator("[role=tabpanel]:visible").get_attribute("id") == "tokens"
    assert page.evaluate("() => document.activeElement.id") == "tab-tokens"
    assert page.locator("[role=tab][aria-selected=true]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("#side").is_hidden()


# Tokens


def test_the_tokens_tab_shows_what_the_model_saw(page: Page, api: FakeApi) -> None:
    act(page, "settings")
    page.fill("#system-prompt", "你是一名厨师。")
    ask(page, "第一行\n<_user>第二行")
    act(page, "tokens")
    shown = _tokens(page)
    seen = prompt_tokens(api.requests[-1]["messages"])
    assert shown == [text.replace("\n", "⏎") for text in seen]
    assert api.tokenized[-1]["messages"] == api.requests[-1]["messages"]
    _status(page, "tokens", f"共 {len(seen)} 个词元，与服务统计的一致。")
    # The control tokens of the template, and nothing that the user typed.
    controls = page.locator(".token.control").all_inner_texts()
    assert controls == ["<_system>", "<_user>", "<_bot>"]


def test_every_answer_leads_to_its_own_prompt(page: Page) -> None:
    ask(page, "echo one")
    ask(page, "echo two")
    page.locator("[data-act=answer-tokens]").first.click()
    first = [{"role": "user", "content": "echo one"}]
    assert _tokens(page) == prompt_tokens(first)
    act(page, "answer-tokens")
    whole = [*first, {"role": "assistant", "content": "one"}, {"role": "user", "content": "echo two"}]
    page.wait_for_function(
        "n => document.querySelectorAll('#token-list .token').length === n", arg=len(prompt_tokens(whole))
    )
    assert _tokens(page) == prompt_tokens(whole)


def test_the_tokens_tab_follows_the_conversation(page: Page) -> None:
    act(page, "settings")
    page.click("#tab-tokens")
    _status(page, "tokens", "先提一个问题")
    ask(page, "echo one")
    _status(page, "tokens", "与服务统计的一致")
    assert _tokens(page) == prompt_tokens([{"role": "user", "content": "echo one"}])
    act(page, "new")
    _status(page, "tokens", "先提一个问题")
    assert page.locator("#token-list").is_hidden()


def test_a_prompt_that_would_now_be_another_is_marked(page: Page, api: FakeApi) -> None:
    ask(page, "echo one")
    api.num_added_tokens = 2  # as if the model behind the name had changed
    act(page, "tokens")
    _status(page, "tokens", "模型或模板可能已经更换")
    assert "bad" in (page.get_attribute("#tokens-status", "class") or "")


def test_numbers_of_tokens_are_shown_and_copied(browser: Browser, url: str) -> None:
    with fresh_page(browser, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        ask(page, "echo one")
        act(page, "tokens")
        ids = token_ids(_tokens(page))
        after = "() => getComputedStyle(document.querySelector('.token'), '::after').content"
        assert page.evaluate(after) == "none"
        page.check("#show-ids")
        assert page.evaluate(after).strip('"') == str(ids[0])
        act(page, "copy-ids")
        page.wait_for_function("() => document.getElementById('announcer').innerText === '已复制'")
        assert page.evaluate("() => navigator.clipboard.readText().then(JSON.parse)") == ids


def test_a_service_without_tokens_says_so(browser: Browser, api: FakeApi) -> None:
    with (
        serve_in_thread(api.app(without=("/tokenize",))) as api_url,
        serve_in_thread(create_page_app(api_url)) as url,
        fresh_page(browser, url) as page,
    ):
        ask(page, "echo one")
        act(page, "tokens")
        _status(page, "tokens", "无法读取词元：The model service answered with status 404.")


def test_context_used_is_drawn_and_marked_when_nearly_full(page: Page) -> None:
    for question, is_nearly_full in (("echo " + "很长的问题" * 400, False), ("echo more", True)):
        ask(page, question)
        used, limit = (int(number) for number in page.locator("#usage-text").inner_text().split()[1::2])
        part = page.get_attribute("#usage-part", "stroke-dasharray") or ""
        assert abs(float(part.split()[0]) - 100 * used / limit) < 0.5
        assert (page.locator("#usage.nearly-full").count() == 1) is is_nearly_full


# Load


def _figure(page: Page, name: str) -> str:
    return page.locator(f"[data-figure={name}] strong").inner_text()


def test_the_load_tab_shows_the_figures_of_the_service(page: Page, api: FakeApi) -> None:
    act(page, "load")
    page.wait_for_function(
        "() => Number(document.querySelector('[data-figure=speed] strong')?.innerText) > 0"
    )
    assert (_figure(page, "running"), _figure(page, "waiting"), _figure(page, "cache")) == ("7", "2", "25")
    assert _figure(page, "first") == "0.13"  # half way into the only bucket, 0 to 0.25 s
    assert _figure(page, "perToken") == "10"
    # 1,000 tokens and one failure a reading, which comes about every two seconds.
    assert 200 < float(_figure(page, "speed")) <= 500
    assert 12 < float(_figure(page, "failures")) <= 30
    assert 120 < float(_figure(page, "answers")) <= 300
    points = page.get_attribute("[data-figure=speed] .line", "points") or ""
    assert 2 <= len(points.split()) <= api.num_scrapes


def test_the_load_is_read_only_while_it_is_seen(page: Page, api: FakeApi) -> None:
    page.wait_for_timeout(500)
    assert api.num_scrapes == 0
    act(page, "load")
    page.wait_for_selector(".tile")
    page.click("#tab-settings")
    seen = api.num_scrapes
    page.wait_for_timeout(SCRAPES_APART_MS + 700)
    assert api.num_scrapes == seen
    page.click("#tab-load")
    page.wait_for_function("() => document.querySelectorAll('.tile').length")
    page.evaluate(
        """() => {
            Object.defineProperty(document, "visibilityState", { value: "hidden", configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    page.wait_for_timeout(300)
    hidden = api.num_scrapes
    page.wait_for_timeout(SCRAPES_APART_MS + 700)
    assert api.num_scrapes == hidden
    page.evaluate(
        """() => { delete document.visibilityState;
            document.dispatchEvent(new Event("visibilitychange")); }"""
    )
    page.wait_for_timeout(SCRAPES_APART_MS + 700)
    assert api.num_scrapes >= hidden + 2


def test_a_service_without_figures_says_so_and_an_engine_that_is_down_is_named(
    page: Page, api: FakeApi
) -> None:
    api.has_metrics = False
    act(page, "load")
    _status(page, "load", "无法读取负载")
    api.has_metrics, api.is_engine_up = True, False
    _status(page, "load", "1 个推理引擎没有运行")
    api.is_engine_up = True
    page.wait_for_selector("#load-status", state="hidden")


def test_the_panel_speaks_the_language_of_the_page(browser: Browser, url: str) -> None:
    with fresh_page(browser, url, locale="en-US") as page:
        ask(page, "echo one")
        act(page, "tokens")
        _status(page, "tokens", "as the service counted")
        act(page, "language")
        wait_idle(page)
        _status(page, "tokens", "与服务统计的一致")
        assert page.locator("#tab-load").inner_text() == "负载"

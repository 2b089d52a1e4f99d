"""The page in a real browser against a fake API: every feature has a test that fails without it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from tests.e2e.browser import act, ask, fresh_page, last_answer, sent_messages, wait_idle
from tests.e2e.fake_api import ANSWER, MODEL, FakeApi, serve_in_thread

from telechat.serve.page.app import create_page_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.e2e

QUESTION = "生抽与老抽的区别？"


def _titles(page: Page) -> list[str]:
    return page.locator("#conversations .row-open").all_inner_texts()


def _wait_titles(page: Page, titles: list[str]) -> None:
    page.wait_for_function(
        "titles => [...document.querySelectorAll('.row-open')].map(row => row.innerText).join() === titles",
        arg=",".join(titles),
    )


# Asking and reading


def test_an_answer_streams_and_is_rendered(page: Page, api: FakeApi) -> None:
    api.pieces_per_second = 10
    ask(page, QUESTION, wait=False)
    page.wait_for_selector("body[data-state=streaming]")
    page.wait_for_selector(".reply .tail")
    early = last_answer(page)
    assert 0 < len(early) < len(ANSWER) / 2
    wait_idle(page)
    assert api.requests[-1]["model"] == MODEL
    assert page.locator(".question .bubble").inner_text() == QUESTION
    assert page.locator(".answer td").all_inner_texts()[:3] == ["颜色", "浅，红褐色", "深，棕黑色"]
    assert page.locator(".answer .hl .k").first.inner_text() == "def"
    assert page.locator(".answer math").count() == 3
    assert page.locator(".answer a").get_attribute("href") == "https://example.com/soy"
    assert page.locator(".answer .tail").count() == 0


def test_speed_length_and_context_are_shown(page: Page) -> None:
    ask(page, QUESTION)
    assert re.search(
        r"\d+(\.\d)? 词元/秒 · \d+ 词元 · 首词 \d+\.\d\d 秒", page.locator(".stats").inner_text()
    )
    assert page.locator("#usage").is_visible()
    assert re.fullmatch(r"上下文 \d+ / 2048", page.locator("#usage-text").inner_text())


def test_the_next_question_carries_the_conversation(page: Page, api: FakeApi) -> None:
    ask(page, "echo one")
    ask(page, "echo two")
    assert sent_messages(api) == [
        {"role": "user", "content": "echo one"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "echo two"},
    ]


def test_stop_keeps_the_text_and_ends_the_request(page: Page, api: FakeApi) -> None:
    ask(page, "fake:slow", wait=False)
    page.wait_for_selector(".reply .tail")
    act(page, "stop")
    wait_idle(page)
    assert ANSWER.startswith(last_answer(page)[:3])
    assert page.locator(".notice").inner_text() == "已停止生成。"
    page.wait_for_timeout(300)
    assert (api.num_open, api.num_abandoned) == (0, 1)


def test_retry_asks_the_same_again(page: Page, api: FakeApi) -> None:
    ask(page, "echo one")
    act(page, "retry")
    wait_idle(page)
    assert len(api.requests) == 2
    assert api.requests[0]["messages"] == api.requests[1]["messages"]
    assert page.locator(".reply").count() == 1


def test_edit_replaces_a_question_and_what_followed(page: Page, api: FakeApi) -> None:
    ask(page, "echo one")
    ask(page, "echo two")
    page.locator(".question").first.hover()
    page.locator(".question [data-act=edit]").first.click()
    page.fill(".editing textarea", "echo three")
    act(page, "save-edit")
    wait_idle(page)
    assert sent_messages(api) == [{"role": "user", "content": "echo three"}]
    assert page.locator(".message").count() == 2
    assert last_answer(page) == "three"


def test_edit_can_be_cancelled(page: Page, api: FakeApi) -> None:
    ask(page, "echo one")
    page.locator(".question").hover()
    act(page, "edit")
    page.fill(".editing textarea", "echo three")
    act(page, "cancel-edit")
    assert page.locator(".bubble").inner_text() == "echo one"
    assert len(api.requests) == 1


def test_enter_sends_but_not_while_composing_and_not_with_shift(page: Page, api: FakeApi) -> None:
    page.fill("#prompt", "echo one")
    page.evaluate(
        """() => document.getElementById("prompt").dispatchEvent(
            new KeyboardEvent("keydown",
                { key: "Enter", isComposing: true, bubbles: true, cancelable: true }))"""
    )
    page.press("#prompt", "Shift+Enter")
    page.type("#prompt", "two")
    assert page.input_value("#prompt") == "echo one\ntwo"
    assert api.requests == []
    page.press("#prompt", "Enter")
    wait_idle(page)
    assert sent_messages(api) == [{"role": "user", "content": "echo one\ntwo"}]


# What goes wrong


@pytest.mark.parametrize(
    ("behaviour", "notice"),
    [
        ("exit", "回答在中途断开，内容可能不完整。"),
        ("no-done", "回答在中途断开，内容可能不完整。"),
        ("error", "出错了：The engine ran out of memory."),
        ("length", "已达到长度上限，回答可能不完整。"),
    ],
)
def test_a_troubled_answer_keeps_its_text_and_says_why(page: Page, behaviour: str, notice: str) -> None:
    ask(page, f"fake:{behaviour}")
    assert last_answer(page).startswith("生抽和老抽都是酱油")
    assert page.locator(".notice").inner_text() == notice
    assert page.locator("[data-act=retry]").is_visible()


@pytest.mark.parametrize(
    ("behaviour", "notice"),
    [
        ("refuse", "出错了：Too many requests; try again in 3 seconds."),
        ("html-error", "出错了：The model service answered with status 503."),
        ("empty", "模型没有返回内容。"),
    ],
)
def test_no_answer_says_why(page: Page, behaviour: str, notice: str) -> None:
    ask(page, f"fake:{behaviour}")
    assert page.locator(".notice").inner_text() == notice


def test_a_service_that_is_down_is_shown_and_found_again(browser: Browser, api: FakeApi) -> None:
    with serve_in_thread(api.app()) as api_url:
        pass  # stopped: its port answers nobody
    with (
        serve_in_thread(create_page_app(api_url)) as url,
        fresh_page(browser, url) as page,
    ):
        page.wait_for_selector("[data-service=down]")
        ask(page, "echo one")
        assert "The model service does not answer" in page.locator(".notice").inner_text()
        with serve_in_thread(api.app(), port=int(api_url.rsplit(":", 1)[1])):
            page.wait_for_selector("[data-service=up]")
            act(page, "retry")
            wait_idle(page)
            assert last_answer(page) == "one"


def test_a_page_that_asks_for_the_key_works_once_it_has_it(browser: Browser, api: FakeApi) -> None:
    """Scripts, answers and rendering all come with the password that the browser was given once."""
    key = {"username": "anyone", "password": "sk-secret"}
    with (
        serve_in_thread(api.app()) as api_url,
        serve_in_thread(create_page_app(api_url, access_key="sk-secret")) as url,
        fresh_page(browser, url, http_credentials=key) as page,
    ):
        ask(page, "echo one")
        assert last_answer(page) == "one"
        page.reload()
        wait_idle(page)
        assert _titles(page) == ["echo one"]


def test_a_page_server_that_is_gone_is_an_error_not_a_hang(browser: Browser, api: FakeApi) -> None:
    with serve_in_thread(api.app()) as api_url:
        server = serve_in_thread(create_page_app(api_url))
        with fresh_page(browser, server.__enter__()) as page:
            server.__exit__(None, None, None)
            ask(page, "echo one")
            assert "无法连接页面服务" in page.locator(".notice").inner_text()


# History


def test_conversations_are_kept_listed_and_rendered_again(page: Page) -> None:
    ask(page, QUESTION)
    act(page, "new")
    wait_idle(page)
    ask(page, "echo two")
    _wait_titles(page, ["echo two", QUESTION])
    page.reload()
    wait_idle(page)
    assert page.locator("#welcome").is_visible()
    _wait_titles(page, ["echo two", QUESTION])
    page.click(f"text={QUESTION}")
    page.wait_for_selector(".answer math")
    wait_idle(page)
    assert page.locator(".answer table").is_visible()
    assert "词元" in page.locator(".stats").inner_text()


def test_a_conversation_can_be_renamed(page: Page) -> None:
    ask(page, "echo one")
    act(page, "rename")
    page.fill("#conversations input", "我的对话")
    page.press("#conversations input", "Enter")
    _wait_titles(page, ["我的对话"])
    assert page.locator("#title").inner_text() == "我的对话"
    page.reload()
    wait_idle(page)
    _wait_titles(page, ["我的对话"])


def test_a_conversation_can_be_deleted_and_brought_back(page: Page) -> None:
    ask(page, "echo one")
    act(page, "delete")
    _wait_titles(page, [])
    assert page.locator("#welcome").is_visible()
    page.click("#toast-action")
    _wait_titles(page, ["echo one"])
    assert last_answer(page) == "one"
    act(page, "delete")
    _wait_titles(page, [])
    page.reload()
    wait_idle(page)
    assert _titles(page) == []


def test_search_finds_words_of_the_answers(page: Page) -> None:
    ask(page, QUESTION)
    act(page, "new")
    wait_idle(page)
    ask(page, "echo two")
    page.fill("#search", "红烧")
    _wait_titles(page, [QUESTION])
    page.fill("#search", "nothing")
    assert page.locator("#no-conversations").is_visible()


def test_an_answer_goes_on_while_another_conversation_is_shown(page: Page, api: FakeApi) -> None:
    ask(page, "echo one")
    act(page, "new")
    wait_idle(page)
    api.pieces_per_second = 25
    ask(page, QUESTION, wait=False)
    page.wait_for_selector(".reply .tail")
    page.click("text=echo one")
    page.wait_for_function("() => document.querySelector('.bubble').innerText === 'echo one'")
    assert page.locator(".reply").count() == 1
    page.click(f".row-open >> text={QUESTION}")
    page.wait_for_selector(".reply[data-status=streaming] .block")
    wait_idle(page)
    assert page.locator(".answer math").count() == 3
    assert page.locator(".reply[data-status=done]").count() == 1


def test_deleting_the_conversation_being_answered_stops_it(page: Page, api: FakeApi) -> None:
    ask(page, "fake:slow", wait=False)
    page.wait_for_selector(".reply .tail")
    act(page, "delete")
    wait_idle(page)
    _wait_titles(page, [])
    page.reload()
    wait_idle(page)
    assert _titles(page) == []
    assert api.num_open == 0


def test_an_answer_cut_by_a_reload_is_kept_and_marked(page: Page, api: FakeApi) -> None:
    ask(page, "fake:slow", wait=False)
    page.wait_for_selector(".reply .tail")
    page.wait_for_timeout(1500)  # the text is saved once a second
    page.reload()
    wait_idle(page)
    page.click("text=fake:slow")
    page.wait_for_selector(".notice:visible")
    assert page.locator(".notice").inner_text() == "回答在中途断开，内容可能不完整。"
    assert ANSWER.startswith(page.locator(".answer").inner_text()[:2])


def test_a_full_storage_is_reported(page: Page) -> None:
    page.evaluate(
        """() => { IDBObjectStore.prototype.put = () => {
            throw new DOMException("full", "QuotaExceededError"); }; }"""
    )
    ask(page, "echo one")
    assert "浏览器存储空间已满" in page.locator("#toast-text").inner_text()
    assert last_answer(page) == "one"


def test_without_a_database_the_page_still_works(browser: Browser, url: str) -> None:
    with fresh_page(browser, url) as page:
        page.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined })")
        page.reload()
        wait_idle(page)
        assert "不允许保存历史" in page.locator("#toast-text").inner_text()
        ask(page, "echo one")
        _wait_titles(page, ["echo one"])

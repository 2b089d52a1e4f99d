"""Rules of the page in a real browser: nothing active, nothing outside, copying, scrolling, reach, phones."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.browser import act, ask, fresh_page, last_answer, wait_idle
from tests.e2e.fake_api import ANSWER, ATTACKS, FakeApi, serve_in_thread

from telechat.serve.page.app import create_page_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.e2e


def _assert_inert(page: Page) -> None:
    assert page.evaluate("() => window.attacked") is None
    assert (
        page.locator(".message :is(script, style, iframe, form, input, svg:not(.icon), object)").count() == 0
    )
    assert page.locator(".message img:not(.avatar)").count() == 0
    links = page.eval_on_selector_all(".message a", "links => links.map(link => [link.protocol, link.rel])")
    assert all(
        link in (["http:", "noopener noreferrer"], ["https:", "noopener noreferrer"]) for link in links
    )


def test_attacks_in_answers_stay_inert_while_streaming_and_after_a_reload(page: Page, api: FakeApi) -> None:
    api.pieces_per_second = 300
    ask(page, "fake:attack")
    _assert_inert(page)
    assert "window.attacked=1" in last_answer(page)
    page.reload()
    wait_idle(page)
    page.click("#conversations .row-open")
    page.wait_for_selector(".reply .block:not(.plain)")
    _assert_inert(page)


def test_attacks_in_questions_titles_and_names_stay_inert(page: Page) -> None:
    attack = ATTACKS[1]
    ask(page, f"echo {attack}")
    act(page, "rename")
    page.fill("#conversations input", attack)
    page.press("#conversations input", "Enter")
    page.wait_for_function("attack => document.getElementById('title').innerText === attack", arg=attack)
    _assert_inert(page)
    assert page.locator("#conversations img, #title img").count() == 0


def test_the_browser_refuses_html_that_did_not_go_through_the_policy(page: Page) -> None:
    refused = page.evaluate(
        """() => new Promise(resolve => setTimeout(() => {
            const tried = [() => { document.body.innerHTML = "<b>x</b>"; },
                           () => trustedTypes.createPolicy("other", {}),
                           () => trustedTypes.createPolicy("telechat", {}),
                           () => new Function("return 1")()];
            resolve(tried.map(act => {
                try { act(); return "allowed"; } catch (error) { return error.name; }
            }));
        }))"""
    )
    assert refused == ["TypeError", "TypeError", "TypeError", "EvalError"]


def test_images_from_outside_are_not_loaded(page: Page) -> None:
    blocked = page.evaluate(
        """() => new Promise(resolve => {
            document.addEventListener("securitypolicyviolation", event => resolve(event.violatedDirective));
            document.body.append(Object.assign(new Image(), { src: "https://127.0.0.1:1/x.png" }));
        })"""
    )
    assert blocked == "img-src"


_connections: list[Any] | None = None


def _watch_connections(event: str, arguments: tuple[Any, ...]) -> None:
    if _connections is not None and event == "socket.connect":
        _connections.append(arguments[1])
    elif _connections is not None and event == "socket.getaddrinfo":
        _connections.append(arguments[:2])


def test_the_server_connects_to_loopback_only(browser: Browser, url: str) -> None:
    global _connections
    sys.addaudithook(_watch_connections)
    _connections = []
    try:
        with fresh_page(browser, url) as page:
            ask(page, "fake:attack")
            ask(page, "生抽与老抽的区别？")
        targets = [target for target in _connections if isinstance(target, tuple)]
    finally:
        _connections = None
    assert targets, "the way to the API should have been seen"
    assert all(ipaddress.ip_address(str(host)).is_loopback for host, *_ in targets), targets


def _pasted(page: Page, start: str) -> str:
    """What the clipboard holds once it begins with `start`: writing to it takes the browser a moment."""
    for _ in range(100):
        page.fill("#prompt", "")
        page.press("#prompt", "Control+V")
        text = page.input_value("#prompt")
        if text.startswith(start):
            return text
        page.wait_for_timeout(50)
    raise AssertionError(f"expected {start!r} in the clipboard, it holds {text!r}")


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_answers_questions_and_code_can_be_copied(browser: Browser, url: str, has_clipboard: bool) -> None:
    with fresh_page(browser, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        if not has_clipboard:  # as on plain http in a local network
            page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
            page.add_init_script("Object.defineProperty(window, 'isSecureContext', { value: false })")
            page.add_init_script("delete Crypto.prototype.randomUUID")
            page.reload()
            wait_idle(page)
        ask(page, "生抽与老抽的区别？")
        page.click(".reply [data-act=copy]")
        page.wait_for_function("() => document.getElementById('announcer').innerText === '已复制'")
        assert _pasted(page, ANSWER) == ANSWER
        page.click("[data-act=copy-code]")
        _pasted(page, "def choose(dish: str)")
        page.hover(".question")
        page.click(".question [data-act=copy]")
        assert _pasted(page, "生抽") == "生抽与老抽的区别？"


def test_scrolling_follows_the_end_only_for_a_reader_at_the_end(page: Page, api: FakeApi) -> None:
    api.pieces_per_second = 150
    place = """() => { const s = document.getElementById("scroller");
        return s.scrollHeight - s.scrollTop - s.clientHeight; }"""
    ask(page, "生抽与老抽的区别？")
    assert page.evaluate(place) < 5
    ask(page, "生抽与老抽的区别？", wait=False)
    page.wait_for_selector(".reply[data-status=streaming] .tail")
    page.evaluate("() => document.getElementById('scroller').scrollTo(0, 10)")
    wait_idle(page)
    assert page.evaluate("() => document.getElementById('scroller').scrollTop") == 10
    act(page, "to-end")
    assert page.evaluate(place) < 5
    assert page.locator("#to-end").is_hidden()


def test_an_answer_is_announced_once(page: Page) -> None:
    page.evaluate(
        """() => { window.said = []; new MutationObserver(() =>
            window.said.push(document.getElementById("announcer").textContent)).observe(
            document.getElementById("announcer"), { childList: true, characterData: true }); }"""
    )
    ask(page, "echo hello there")
    assert page.evaluate("() => window.said") == ["回答完成：hello there"]
    assert page.get_attribute("#log", "role") == "log"
    assert page.get_attribute("#log", "aria-live") == "off"


def test_everything_can_be_reached_by_keyboard_and_shows_it(page: Page) -> None:
    ask(page, "生抽与老抽的区别？")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => { const e = document.activeElement; const style = getComputedStyle(e);
                    const shown = style.outlineStyle !== "none" || e.closest(".search, #composer");
                    return [e.dataset.act ?? e.id ?? e.tagName, Boolean(shown)]; }"""
            )
        )
    names = {name for name, _ in reached}
    assert names >= {"new", "search", "open", "rename", "delete", "language", "theme", "settings", "prompt"}
    assert names >= {
        "copy",
        "edit",
        "retry",
        "copy-code",
        "send",
        "load",
        "tokens",
        "answer-tokens",
        "export-button",
    }
    assert all(shown for name, shown in reached if name)


@pytest.mark.parametrize("locale", ["zh-CN", "en-US"])
def test_a_phone_never_scrolls_sideways(browser: Browser, url: str, locale: str) -> None:
    with fresh_page(browser, url, width=390, locale=locale, has_touch=True) as page:
        fits = "() => document.documentElement.scrollWidth === innerWidth"
        assert page.evaluate(fits)
        assert page.locator("#sidebar").is_hidden()
        ask(page, "echo " + "| very wide column " * 8 + "|\n" + "|---" * 8 + "|\n\n`" + "x" * 200 + "`")
        assert page.evaluate(fits)
        act(page, "menu")
        page.wait_for_selector("#conversations .row-open")
        page.keyboard.press("Escape")
        page.wait_for_selector("#sidebar", state="hidden")
        act(page, "settings")
        assert page.locator("#system-prompt").is_visible()
        assert page.evaluate(fits)
        act(page, "close-panel")
        assert page.locator("#system-prompt").is_hidden()
        for name in ("tokens", "load"):
            act(page, name)
            page.wait_for_selector(f"#{name} :is(.token, .tile)")
            assert page.evaluate(fits)
            act(page, "close-panel")
        page.click("#export-button")
        assert page.evaluate(fits)
        menu = page.locator("#export-menu").bounding_box()
        assert menu and menu["x"] >= 0 and menu["x"] + menu["width"] <= 390


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, api: FakeApi, theme: str, tmp_path: Path) -> None:
    package = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed (extra `dev`)")
    script = (Path(package.__path__[0]) / "axe.min.js").read_text(encoding="utf-8")
    with (
        serve_in_thread(api.app()) as api_url,
        serve_in_thread(create_page_app(api_url, feedback_folder=tmp_path)) as url,
        fresh_page(browser, url, color_scheme=theme) as page,
    ):
        page.evaluate(script + ";0")

        def violations() -> list[str]:
            return page.evaluate("() => axe.run().then(result => result.violations.map(one => one.id))")

        assert violations() == []
        ask(page, "生抽与老抽的区别？")
        act(page, "retry")
        wait_idle(page)
        act(page, "vote-up")
        page.wait_for_selector("[aria-pressed=true]")
        assert violations() == []
        ask(page, "fake:error")
        act(page, "settings")
        assert violations() == []
        act(page, "settings")
        page.locator("[data-act=answer-tokens]").first.click()
        page.wait_for_selector("#token-list .token")
        page.check("#show-ids")
        assert violations() == []
        act(page, "load")
        page.wait_for_selector(".tile")
        page.click("#export-button")
        assert violations() == []
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        act(page, "delete")
        page.wait_for_selector("#toast:visible")
        assert violations() == []


def test_one_heading_of_each_level_and_named_landmarks(page: Page) -> None:
    assert page.locator("h1").count() == 1
    for landmark in ("nav", "aside"):
        assert page.locator(landmark).get_attribute("aria-label")
    unnamed = page.eval_on_selector_all(
        "button, input, textarea, select",
        """all => all.filter(e => !e.getAttribute("aria-label") && !e.innerText.trim() && !e.labels?.length
            && e.checkVisibility()).map(e => e.outerHTML)""",
    )
    assert unnamed == []


@pytest.mark.slow
def test_a_long_fast_answer_arrives_whole_and_the_page_stays_usable(page: Page, api: FakeApi) -> None:
    api.pieces_per_second = 200
    ask(page, "fake:long", wait=False)
    page.wait_for_selector(".reply .block")
    page.fill("#prompt", "still usable")
    wait_idle(page)
    assert page.locator(".answer table").count() == page.locator(".answer .code").count() > 50
    assert page.input_value("#prompt") == "still usable"
    assert page.locator(".notice").is_hidden()

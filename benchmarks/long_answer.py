"""One long, fast answer in a real browser: when it is all on screen, and how the page feels meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

# On screen: from the Enter key to the frame after the page has gone idle. Blocked: the time between timers
# that should fire every few milliseconds, where it is above 50. The browser itself measures key presses,
# to the next frame.
_PROBE = """() => {
    const probe = window.probe = { longest: 0, blocked: 0, keys: [], asked: 0, done: 0 };
    let last = performance.now();
    const tick = () => {
        const now = performance.now();
        probe.longest = Math.max(probe.longest, now - last);
        if (now - last > 50) probe.blocked += now - last;
        last = now;
        if (!probe.done) setTimeout(tick, 0);
    };
    tick();
    new PerformanceObserver(list => {
        for (const entry of list.getEntries()) if (entry.name === "keydown") probe.keys.push(entry.duration);
    }).observe({ type: "event", durationThreshold: 16 });
    addEventListener("keydown", event => {
        if (event.key === "Enter") probe.asked = performance.now();
    }, { capture: true });
    new MutationObserver(() => {
        if (probe.asked && document.body.dataset.state === "idle" && !probe.done)
            requestAnimationFrame(() => requestAnimationFrame(() => { probe.done = performance.now(); }));
    }).observe(document.body, { attributes: true });
}"""
_KEY_EVERY_MS = 250


def watch_long_answer(page: Page, *, num_tables: int, limit_seconds: float) -> Mapping[str, float]:
    """Ask for the long answer on an open page and type while it is written.

    Args:
        num_tables: tables that must be on screen at the end.
        limit_seconds: give up after so long.

    Returns:
        `seconds` on screen, `blocked_seconds`, `longest_block_seconds`, `slowest_key_seconds`.

    Raises:
        RuntimeError: the answer did not arrive whole.
    """
    page.evaluate(_PROBE)
    page.fill("#prompt", "fake:long")
    page.press("#prompt", "Enter")
    waited = 0.0
    while not page.evaluate("() => probe.done"):
        if waited > limit_seconds:
            raise RuntimeError(f"the answer was not on screen after {limit_seconds:.0f} s")
        page.keyboard.press("a")
        page.wait_for_timeout(_KEY_EVERY_MS)
        waited += _KEY_EVERY_MS / 1000
    shown = page.locator(".answer table").count()
    if shown != num_tables:
        raise RuntimeError(f"{shown} of {num_tables} tables are on screen")
    probe: dict[str, Any] = page.evaluate("() => probe")
    return {
        "seconds": (probe["done"] - probe["asked"]) / 1000,
        "blocked_seconds": probe["blocked"] / 1000,
        "longest_block_seconds": probe["longest"] / 1000,
        # Key presses faster than a frame or two are not reported by browsers.
        "slowest_key_seconds": max(probe["keys"], default=16.0) / 1000,
    }

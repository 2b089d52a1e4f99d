"""`make bench-page`: the chat page under load.

    python -m benchmarks.page
    python -m benchmarks.page --streams 4 --rounds 1 --kilobytes 10 --seconds 1

Many streams at once: the time to the first token through the page beside the API's own, in turn within each
round, over an API that costs nothing (prepared answers) and over the demo model. One long, fast answer: when
it is all on screen of a real Chromium, and how the page feels meanwhile. A figure never fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

import httpx

from benchmarks import record
from benchmarks.harness import Result, Results, say
from benchmarks.long_answer import watch_long_answer
from benchmarks.servers import chat_page, demo_api, fake_api
from benchmarks.table import Outcome, Place, Row, lines, outcome
from telechat.serve.page.events import EventParser

MODULE = "benchmarks.page"
PAGE, API = "page", "api"
PIECES_PER_SECOND = 50.0
LIMIT = 3.0
KEY_LIMIT_SECONDS = 0.2
"""Browsers call a page good whose slowest reaction takes no longer."""


async def first_tokens(url: str, questions: Sequence[str], model: str) -> list[float]:
    """Ask all questions at once, read all answers to the end; seconds from each request to its first text."""
    timeout = httpx.Timeout(None)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits, trust_env=False) as client:
        return await asyncio.gather(*(_first_token(client, question, model) for question in questions))


async def _first_token(client: httpx.AsyncClient, question: str, model: str) -> float:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": question}]}
    parser = EventParser()
    first: float | None = None
    began = time.perf_counter()
    last = ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for chunk in answer.aiter_bytes():
            for event in parser.feed(chunk):
                last = event
                if first is None and event != "[DONE]" and _has_text(json.loads(event)):
                    first = time.perf_counter() - began
    if first is None or last != "[DONE]":
        raise RuntimeError(f"an answer was not whole; its last event: {last[:200]}")
    return first


def _has_text(chunk: dict[str, object]) -> bool:
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(choice["delta"].get("content") for choice in choices)


def measure_streams(
    name: str, api: AbstractContextManager[str], questions: Sequence[str], *, rounds: int
) -> dict[str, list[Result | None]]:
    """Results of both ways, one per round after one to warm up."""
    results: dict[str, list[Result | None]] = {PAGE: [], API: []}
    with api as api_url, chat_page(api_url) as page_url:
        model = httpx.get(f"{api_url}/v1/models", trust_env=False).json()["data"][0]["id"]
        for number in range(rounds + 1):
            say(f"  {name}: round {number} of {rounds}" + ("" if number else " (warm-up)"))
            for way, url in ((API, api_url), (PAGE, page_url)):
                seconds = asyncio.run(first_tokens(url, questions, model))
                if number:
                    results[way].append({"median": statistics.median(seconds), "slowest": max(seconds)})
    return results


def measure_long_answer(kilobytes: int, seconds: float, *, rounds: int) -> list[Result | None]:
    """Results of the browser, one per round, each in a fresh page."""
    from playwright.sync_api import sync_playwright
    from tests.e2e.browser import ARGUMENTS, CHROMIUM
    from tests.e2e.fake_api import answer_pieces

    if CHROMIUM is None:
        raise RuntimeError("no Chromium found; install it or name it in TELECHAT_CHROMIUM")
    pieces = list(answer_pieces("long", long_bytes=1000 * kilobytes))
    num_tables = "".join(pieces).count("|:--|:--|:--|")
    api = fake_api(pieces_per_second=len(pieces) / seconds, long_bytes=1000 * kilobytes)
    results: list[Result | None] = []
    with api as api_url, chat_page(api_url) as url, sync_playwright() as playwright:
        for number in range(rounds):
            say(f"  long answer: round {number + 1} of {rounds}")
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            page = browser.new_page()
            page.goto(url)
            page.wait_for_selector("body[data-state=idle]")
            results.append(watch_long_answer(page, num_tables=num_tables, limit_seconds=60 + 3 * seconds))
            browser.close()
    return results


def stream_rows(case: str, title: str) -> list[Row]:
    """Median and slowest first token through the page, to the API's own."""
    return [
        Row(
            f"{title}: first token, {key}",
            Place(case, PAGE),
            Place(case, API),
            key=key,
            goal=LIMIT,
            floor=LIMIT,
            lower_is_better=True,
        )
        for key in ("median", "slowest")
    ]


def long_rows(kilobytes: int, seconds: float) -> list[Row]:
    """What the browser showed."""
    case, title = "long answer", f"{kilobytes} KB in {seconds:g} s"
    limits = {"seconds": 1.1 * seconds, "slowest_key_seconds": KEY_LIMIT_SECONDS}
    names = {
        "seconds": "all on screen",
        "slowest_key_seconds": "slowest key press",
        "longest_block_seconds": "longest block",
        "blocked_seconds": "blocked in all",
    }
    return [
        Row(
            f"{title}: {text}",
            Place(case, PAGE),
            key=key,
            unit="s",
            goal=limits.get(key),
            floor=limits.get(key),
            lower_is_better=True,
        )
        for key, text in names.items()
    ]


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=50, help="at once (default: 50)")
    parser.add_argument("--rounds", type=int, default=5, help="counted ones (default: 5)")
    parser.add_argument("--kilobytes", type=int, default=100, help="of the long answer (default: 100)")
    parser.add_argument("--seconds", type=float, default=10.0, help="it is sent in (default: 10)")
    parser.add_argument("--without", choices=("demo", "browser"), action="append", default=[])
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Run, print, write JSON."""
    args = parse(words)
    start = time.monotonic()
    head = record.record(MODULE, words)
    results: Results = {}
    rows: list[Row] = []
    api = fake_api(pieces_per_second=PIECES_PER_SECOND, long_bytes=1000)
    questions = [f"question {number}" for number in range(args.streams)]
    results["prepared answers"] = measure_streams("prepared answers", api, questions, rounds=args.rounds)
    rows += stream_rows("prepared answers", f"{args.streams} streams, prepared answers")
    if "demo" not in args.without:
        questions = [f"{number}+{3 * number}等于多少？" for number in range(args.streams)]
        results["demo model"] = measure_streams("demo model", demo_api(), questions, rounds=args.rounds)
        rows += stream_rows("demo model", f"{args.streams} streams, demo model")
    if "browser" not in args.without:
        results["long answer"] = {PAGE: measure_long_answer(args.kilobytes, args.seconds, rounds=args.rounds)}
        rows += long_rows(args.kilobytes, args.seconds)
    outcomes: list[Outcome] = [outcome(row, results, {}) for row in rows]
    report = {**head, "seconds": round(time.monotonic() - start), "rows": [each.entry() for each in outcomes]}
    record.write("page", report)
    print("\n".join(lines(outcomes)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

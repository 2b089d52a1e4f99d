"""`make bench-page`: what it counts as a first token, and what it does not let pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from benchmarks import page
from benchmarks.table import lines, outcome
from tests.e2e.fake_api import MODEL, FakeApi, serve_in_thread

from telechat.serve.page.app import create_page_app


@pytest.fixture
def api() -> FakeApi:
    return FakeApi(pieces_per_second=500)


@pytest.fixture
def api_url(api: FakeApi) -> Iterator[str]:
    with serve_in_thread(api.app()) as url:
        yield url


def test_first_tokens_through_the_api_and_through_the_page(api: FakeApi, api_url: str) -> None:
    questions = [f"echo {number} and more" for number in range(5)]
    with serve_in_thread(create_page_app(api_url)) as page_url:
        for url in (api_url, page_url):
            began = time.perf_counter()
            seconds = asyncio.run(page.first_tokens(url, questions, MODEL))
            assert len(seconds) == 5
            assert all(0 < each < time.perf_counter() - began for each in seconds)
    assert len(api.requests) == 10


@pytest.mark.parametrize("behaviour", ["no-done", "error", "empty"])
def test_an_answer_that_is_not_whole_ends_the_run(api_url: str, behaviour: str) -> None:
    with pytest.raises((RuntimeError, KeyError)):
        asyncio.run(page.first_tokens(api_url, [f"fake:{behaviour}"], MODEL))


def test_rows_are_ratios_with_a_limit_and_seconds_with_a_limit() -> None:
    rows = [*page.stream_rows("case", "50 streams"), *page.long_rows(100, 10.0)]
    results = {
        "case": {
            page.PAGE: [{"median": 0.2, "slowest": 0.9}],
            page.API: [{"median": 0.1, "slowest": 0.2}],
        },
        "long answer": {
            page.PAGE: [
                {
                    "seconds": 10.5,
                    "slowest_key_seconds": 0.3,
                    "longest_block_seconds": 0.1,
                    "blocked_seconds": 0.4,
                }
            ]
        },
    }
    outcomes = [outcome(row, results, {}) for row in rows]
    assert [each.verdict for each in outcomes] == ["goal", "BELOW", "goal", "BELOW", "", ""]
    assert outcomes[0].value == pytest.approx(2.0) and outcomes[2].value == 10.5
    assert len(lines(outcomes)) == 7

"""Servers and browser pages for the end-to-end tests, started only when a test asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e.browser import fresh_page, launched_browser
from tests.e2e.fake_api import FakeApi, serve_in_thread
from tests.e2e.servers import API_KEY, ORIGIN, RunningServer, running_server

from telechat.serve.page.app import create_page_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def small_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose answers end after 16 tokens unless the request says otherwise; read only."""
    from tests.tiny import make_tiny_model

    folder = make_tiny_model(tmp_path_factory.mktemp("serve") / "tiny-telechat")
    settings = {"do_sample": False, "max_new_tokens": 16, "repetition_penalty": 1.03, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def server(small_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with the random model, 2048 tokens of context and the key API_KEY."""
    log = tmp_path_factory.mktemp("logs") / "server.log"
    options = ("--max-model-len", "2048", "--cors-origin", ORIGIN)
    with running_server(small_model_folder, log, *options, key=API_KEY) as running:
        yield running


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with the bundled demo model."""
    from telechat.checkpoint import resolve_model
    from telechat.errors import TelechatError

    try:
        resolve_model("demo")
    except TelechatError as error:
        pytest.skip(f"no demo model here: {error}")
    log = tmp_path_factory.mktemp("logs") / "demo.log"
    with running_server("demo", log) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    with launched_browser() as browser:
        yield browser


@pytest.fixture
def api() -> FakeApi:
    """An API whose answers the test knows and steers."""
    return FakeApi(pieces_per_second=600)


@pytest.fixture
def url(api: FakeApi) -> Iterator[str]:
    """Address of the chat page before the fake API."""
    with serve_in_thread(api.app()) as api_url, serve_in_thread(create_page_app(api_url)) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The chat page, opened afresh."""
    with fresh_page(browser, url) as page:
        yield page

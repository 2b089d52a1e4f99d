"""Servers for the end-to-end tests, each started once per session and only when a test asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.servers import API_KEY, ORIGIN, RunningServer, running_server


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

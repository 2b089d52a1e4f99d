"""The example with OpenAI's client, run as a user runs it; the others are in test_gptdialog."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.servers import API_KEY, RunningServer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "openai_chat.py"

pytestmark = pytest.mark.e2e


def run_example(url: str, key: str | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    if key is not None:
        environment["TELECHAT_API_KEY"] = key
    command = [sys.executable, str(EXAMPLE), "hello", "--url", url]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=200
    )


def test_it_prints_the_answer(server: RunningServer) -> None:
    done = run_example(server.url, API_KEY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_without_the_key(server: RunningServer) -> None:
    done = run_example(server.url, None)
    assert done.returncode != 0 and "401" in done.stderr

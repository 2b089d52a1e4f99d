"""The example programs, run as a user runs them, against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.servers import API_KEY, RunningServer

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.e2e


def run_example(name: str, *words: str, key: str | None = API_KEY) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    if key is not None:
        environment["TELECHAT_API_KEY"] = key
    command = [sys.executable, str(ROOT / "examples" / name), *words]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=120
    )


@pytest.mark.parametrize("name", ["gptdialog_stream.py", "gptdialog_json.py", "openai_chat.py"])
def test_answers(name: str, server: RunningServer) -> None:
    done = run_example(name, "hello", "--url", server.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_error_of_the_original_protocol_is_shown(server: RunningServer) -> None:
    done = run_example("gptdialog_json.py", "hello " * 3000, "--url", server.url)
    assert done.returncode == 1 and "10305" in done.stderr


@pytest.mark.parametrize("name", ["gptdialog_stream.py", "gptdialog_json.py", "openai_chat.py"])
def test_without_the_key(name: str, server: RunningServer) -> None:
    done = run_example(name, "hello", "--url", server.url, key=None)
    assert done.returncode != 0 and "401" in done.stderr

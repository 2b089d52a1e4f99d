"""`telechat deploy` as a process: both servers answer, Ctrl-C stops both, one that dies stops the other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.e2e.deployments import Deployment, deployment
from tests.e2e.servers import free_port

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals"),
]

COMMAND = [sys.executable, "-m", "telechat", "deploy"]


def get(url: str) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=30) as client:
        return client.get(url)


def is_listening(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def assert_both_answer(running: Deployment) -> None:
    assert running.api_url in running.printed[0] and f"{running.api_url}/docs" in running.printed[0]
    assert running.page_url in running.printed[1]
    assert get(f"{running.api_url}/health").status_code == 200
    assert get(f"{running.api_url}/docs").status_code == 200
    assert "<html" in get(running.page_url).text


def test_both_answer_and_ctrl_c_stops_both(tiny_model_folder: Path) -> None:
    with deployment([*COMMAND, "--model-path", str(tiny_model_folder)], cwd=Path.cwd()) as running:
        assert_both_answer(running)
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        for base in (running.api_url, running.page_url):
            with httpx.Client(trust_env=False, timeout=60) as client:
                answer = client.post(
                    f"{base}/v1/chat/completions", json={**body, "model": tiny_model_folder.name}
                )
            assert answer.status_code == 200, answer.text
        assert running.interrupt() == 130
        assert not is_listening(running.api_url) and not is_listening(running.page_url)


def test_terminate_is_a_clean_end(tiny_model_folder: Path) -> None:
    with deployment([*COMMAND, "--model-path", str(tiny_model_folder)], cwd=Path.cwd()) as running:
        running.process.terminate()
        assert running.process.wait(timeout=60) == 0
        assert not is_listening(running.api_url) and not is_listening(running.page_url)


def test_page_that_dies_stops_the_api(tiny_model_folder: Path) -> None:
    with deployment([*COMMAND, "--model-path", str(tiny_model_folder)], cwd=Path.cwd()) as running:
        os.kill(page_process_of(running.process.pid), signal.SIGKILL)
        assert running.process.wait(timeout=60) == 1
        assert not is_listening(running.api_url)


def page_process_of(parent: int) -> int:
    """The child that serves the page, found by its parent, not by name alone."""
    listing = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True, check=True
    ).stdout
    (line,) = [line for line in listing.splitlines() if "page_process" in line]
    return int(line.split()[0])


def test_model_that_does_not_load_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *COMMAND,
            "--model-path",
            str(tmp_path),
            "--api-port",
            str(free_port()),
            "--web-port",
            str(free_port()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"error: {tmp_path} holds no" in done.stderr or f"error: {tmp_path} has no" in done.stderr
    assert "error: The API ended with exit code 1." in done.stderr
    assert "Traceback" not in done.stderr

"""Starting real `telechat serve` processes for the end-to-end tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_SECONDS = 300
API_KEY = "sk-end-to-end"
ORIGIN = "https://page.example"


@dataclass(frozen=True)
class RunningServer:
    """A server process and how to reach it."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    """A TCP port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(
    model: str | Path, log: Path, *options: str, key: str | None = None
) -> Iterator[RunningServer]:
    """`telechat serve MODEL` on a free port, ready to answer; stopped by SIGTERM at the end."""
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TELECHAT_API_KEY", None)
    if key is not None:
        environment["TELECHAT_API_KEY"] = key
    command = [sys.executable, "-m", "telechat", "serve", str(model), "--port", str(port), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process, log)
        yield RunningServer(url, port, process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise AssertionError(f"the server ended with {process.returncode}:\n{log.read_text()}")
            try:
                if client.get(f"{url}/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    raise AssertionError(f"the server was not ready within {START_SECONDS} s:\n{log.read_text()}")

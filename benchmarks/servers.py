"""Servers that a benchmark needs, each a process on a free port of this machine, ended with the benchmark.

Knows commands and addresses; nothing of what is measured.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.harness import ROOT

START_SECONDS = 300.0


def free_port() -> int:
    """A TCP port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    module: str, *words: str, port: int, ready_path: str, python: str = sys.executable
) -> Iterator[str]:
    """`python -m module words…`, once `ready_path` answers; yields its address."""
    command = [python, "-m", module, *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url + ready_path, process, command)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], command: Sequence[str]) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        try:
            with opener.open(address, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"{address} did not answer within {START_SECONDS:.0f} s")


@contextmanager
def fake_api(*, pieces_per_second: float, long_bytes: int) -> Iterator[str]:
    """The tests' stand-in for an API: prepared answers at a fixed rate."""
    port = free_port()
    words = [str(port), "--pieces-per-second", str(pieces_per_second), "--long-bytes", str(long_bytes)]
    with serving("tests.e2e.fake_api", *words, port=port, ready_path="/v1/models") as url:
        yield url


@contextmanager
def demo_api() -> Iterator[str]:
    """The real API with the demo model."""
    port = free_port()
    words = ["serve", "demo", "--port", str(port), "--log-level", "error"]
    with serving("telechat", *words, port=port, ready_path="/ready") as url:
        yield url


@contextmanager
def chat_page(api_url: str) -> Iterator[str]:
    """The page before the API at `api_url`."""
    port = free_port()
    words = ["--api-url", api_url, "--host", "127.0.0.1", "--port", str(port)]
    with serving("telechat.cli.page_process", *words, port=port, ready_path="/health") as url:
        yield url

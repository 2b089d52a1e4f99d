"""Starting `telechat deploy` for a test, and knowing when it is ready."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.e2e.servers import free_port

READY_LINE = "Ctrl-C stops both."


@dataclass(frozen=True)
class Deployment:
    """A running deployment: its process, its addresses, and what it printed on stdout until it was ready."""

    process: subprocess.Popen[str]
    api_url: str
    page_url: str
    printed: tuple[str, ...]

    def interrupt(self) -> int:
        """Ctrl-C, as a terminal sends it; returns the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=60)


@contextmanager
def deployment(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    ready_seconds: float = 120,
) -> Iterator[Deployment]:
    """Run a command that deploys, on free ports; yields once it says that it is ready."""
    api_port, web_port = free_port(), free_port()
    process = subprocess.Popen(
        [*command, "--api-port", str(api_port), "--web-port", str(web_port)],
        cwd=cwd,
        env=dict(os.environ if environment is None else environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    errors: list[str] = []
    lines: queue.Queue[str | None] = queue.Queue()
    assert process.stdout is not None and process.stderr is not None
    readers = [
        threading.Thread(target=_read_lines, args=(process.stdout, lines)),
        threading.Thread(target=errors.extend, args=(process.stderr,)),
    ]
    for reader in readers:
        reader.start()
    try:
        printed: list[str] = []
        while READY_LINE not in printed:
            try:
                line = lines.get(timeout=ready_seconds)
            except queue.Empty:
                raise AssertionError(f"not ready after {ready_seconds} s:\n{_tail(errors)}") from None
            if line is None:
                raise AssertionError(f"ended with {process.wait()} before it was ready:\n{_tail(errors)}")
            printed.append(line.rstrip("\n"))
        yield Deployment(
            process, f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{web_port}", tuple(printed)
        )
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for reader in readers:
            reader.join()
        process.stdout.close()
        process.stderr.close()


def _read_lines(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    """Put each line, then None at the end: a pipe has no read with a time limit."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def _tail(errors: list[str]) -> str:
    return "".join(errors)[-4000:]

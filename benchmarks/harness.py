"""Runs workers side by side: each in a process that lives through all rounds, one awake at a time.

Workers take turns within every round (A B C A B C), so that what slows the machine down for a while slows all
of them down. Rounds before the counted ones warm up. Knows nothing of the engines, the rows or the goals.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Result = Mapping[str, float]
# case -> worker -> one result per counted round; None where the worker failed.
Results = dict[str, dict[str, list[Result | None]]]


class WorkerError(Exception):
    """A worker cannot be used; the message says why."""


@dataclass(frozen=True)
class WorkerSpec:
    """How to start a worker.

    Attributes:
        command: program and arguments.
        environment: added to this process's.
        unfit: why it cannot even be started; None when it can.
    """

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    unfit: str | None = None


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: the worker's name for it, and the row's.
        workers: who takes part, in this order.
        arguments: handed to each worker.
        call: the workers' name for it where it differs.
    """

    name: str
    workers: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    call: str | None = None


class Worker:
    """A running worker; stopped (SIGSTOP) while nothing is asked of it, so that none of its threads spins."""

    def __init__(self, name: str, spec: WorkerSpec, *, start_timeout: float, call_timeout: float) -> None:
        if spec.unfit:
            raise WorkerError(spec.unfit)
        self.name = name
        self._call_timeout = call_timeout
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        search = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        self._process = subprocess.Popen(
            list(spec.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": search, **spec.environment},
        )
        self._unread = b""
        try:
            ready = self._read(start_timeout)
        except BaseException:  # Ctrl-C too
            self.close()
            raise
        self.about: dict[str, Any] = ready["about"]
        self.cases: list[str] = ready["cases"]
        self._sleep()
        if self.about.get("unfit"):
            self.close()
            raise WorkerError(self.about["unfit"])

    def call(self, case: str, arguments: Mapping[str, Any]) -> Result:
        """Wake the worker, let it do a case, put it to sleep again.

        Raises:
            WorkerError: it failed, died or took too long.
        """
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"case": case, "arguments": arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"ended: {self._last_words()}") from error
        answer = self._read(self._call_timeout)
        self._sleep()
        return answer

    def _read(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise WorkerError(f"no answer within {timeout:.0f} s")
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                raise WorkerError(f"ended: {self._last_words()}")
            self._unread += piece
        line, self._unread = self._unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.wait(timeout=10)}"

    def _sleep(self) -> None:
        self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def close(self) -> None:
        """End the process."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:  # a call that never got through
                    continue


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def _terminate(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def running(
    specs: Mapping[str, WorkerSpec], *, start_timeout: float = 900, call_timeout: float = 900
) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """Start workers one after another. Gives those that run, and why the others do not."""
    workers: dict[str, Worker] = {}
    unfit: dict[str, str] = {}
    # A stopped worker does not see that its master is gone: it would keep its memory for ever.
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        for name, spec in specs.items():
            say(f"  starting {name}")
            try:
                workers[name] = Worker(name, spec, start_timeout=start_timeout, call_timeout=call_timeout)
            except WorkerError as error:
                unfit[name] = str(error)
                say(f"  {name} is left out: {error}")
        yield workers, unfit
    finally:
        for worker in workers.values():
            worker.close()
        signal.signal(signal.SIGTERM, before)


def measure(
    workers: Mapping[str, Worker],
    cases: Sequence[Case],
    *,
    rounds: int,
    warmups: int = 1,
    on_failure: Callable[[str, str, str], None] = lambda case, worker, why: None,
) -> Results:
    """Take turns. A worker that fails a case is not asked for that case again.

    Args:
        rounds: counted ones.
        warmups: rounds before them whose results are thrown away.
        on_failure: told (case, worker, why).
    """
    results: Results = {case.name: {name: [] for name in case.workers} for case in cases}
    failed: set[tuple[str, str]] = set()
    for number in range(warmups + rounds):
        say(f"  round {number + 1} of {warmups + rounds}" + (" (warm-up)" if number < warmups else ""))
        for case in cases:
            for name in case.workers:
                result: Result | None = None
                if name in workers and (case.name, name) not in failed:
                    try:
                        result = workers[name].call(case.call or case.name, case.arguments)
                    except WorkerError as error:
                        failed.add((case.name, name))
                        say(f"  {case.name}: {name} failed: {error}")
                        on_failure(case.name, name, str(error))
                if number >= warmups:
                    results[case.name][name].append(result)
    return results

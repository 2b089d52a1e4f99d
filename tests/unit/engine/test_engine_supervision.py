"""How `EngineProcess` watches, starts again and closes, with stand-ins for the processes it starts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, cast

import pytest

from telechat.engine import SamplingParams
from telechat.engine.channel import Report
from telechat.engine.engine_process import EngineDiedError, EngineProcess, Ready

pytestmark = pytest.mark.timeout(30)

READY = Ready("fake", 10, SamplingParams(), {})


class FakeProcess:
    """What `multiprocessing` would have started; it does as the test says."""

    pid = 1

    def __init__(self) -> None:
        self.ours, self.theirs = Pipe()
        self.sentinel, self._life = Pipe(duplex=False)
        self._ended = threading.Event()
        self.exitcode: int | None = None

    def end(self, exitcode: int) -> None:
        if self.exitcode is None:
            self.exitcode = exitcode
            self._ended.set()
            self.theirs.close()
            self._life.close()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self.end(-signal.SIGKILL)

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)


class Watched(EngineProcess):
    """Over processes of which the first `num_ready` load their model at once, the others never."""

    def __init__(self, *, num_ready: int) -> None:
        self.num_ready = num_ready
        self.processes: list[FakeProcess] = []
        self.alive_at_start: list[bool] = []
        self.reports: list[Report] = []
        self.errors: list[EngineDiedError] = []
        self.was_lost, self.was_started, self.was_revived = (threading.Event() for _ in range(3))
        super().__init__(cast("Any", None), self.reports.append, self._note_loss, self.was_revived.set)

    def _note_loss(self, error: EngineDiedError) -> None:
        self.errors.append(error)
        self.was_lost.set()

    def _start(self) -> tuple[Connection, Any]:
        self.alive_at_start += [process.is_alive() for process in self.processes]
        process = FakeProcess()
        self.processes.append(process)
        if len(self.processes) <= self.num_ready:
            process.theirs.send(READY)
        if len(self.processes) > 1:
            self.was_started.set()
        return process.ours, process


@pytest.fixture(autouse=True)
def _is_impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("telechat.engine.engine_process.CLOSING_SECONDS", 0.2)
    monkeypatch.setattr("telechat.engine.engine_process.SHORT_LIFE_SECONDS", 0.0)
    yield


def test_one_that_hangs_at_its_end_is_killed_before_the_next_is_started() -> None:
    engine = Watched(num_ready=2)
    engine.processes[0].theirs.close()  # it says no more, but lives, and so does its memory
    assert engine.was_revived.wait(10)
    assert engine.alive_at_start == [False]
    assert "did not end by itself and was killed" in engine.errors[0].message
    assert engine.num_restarts == 1
    engine.close()


@pytest.mark.parametrize(
    ("exitcode", "words"),
    [(3, "exit code 3"), (-9, r"ended by SIGKILL \(out of memory\?\)"), (-40, "ended by signal 40")],
)
def test_how_it_ended_is_said(exitcode: int, words: str) -> None:
    engine = Watched(num_ready=2)
    engine.processes[0].end(exitcode)
    assert engine.was_lost.wait(10)
    engine.close()
    with pytest.raises(EngineDiedError, match=words):
        raise engine.errors[0]


def test_closing_while_it_is_started_again_waits_for_no_model() -> None:
    engine = Watched(num_ready=1)
    engine.processes[0].end(1)
    assert engine.was_started.wait(10)
    engine.close()
    assert not any(process.is_alive() for process in engine.processes)
    assert not engine._watcher.is_alive()
    assert len(engine.processes) == 2 and engine.num_restarts == 0


def test_nothing_is_started_once_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Watched(num_ready=2)
    is_told, may_go_on = threading.Event(), threading.Event()

    def lose(error: EngineDiedError) -> None:
        is_told.set()
        may_go_on.wait(10)

    engine._lost = lose
    monkeypatch.setattr("telechat.engine.engine_process.CLOSING_SECONDS", 5.0)
    engine.processes[0].end(1)
    assert is_told.wait(10)
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not engine._is_closing:
        closing.join(0.01)
    may_go_on.set()
    closing.join(10)
    assert not closing.is_alive()
    assert len(engine.processes) == 1


def test_one_that_keeps_dying_is_given_up_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telechat.engine.engine_process.SHORT_LIFE_SECONDS", 60.0)
    monkeypatch.setattr("telechat.engine.engine_process.MAX_SHORT_LIVES", 2)
    engine = Watched(num_ready=9)
    engine.processes[0].end(1)
    assert engine.was_revived.wait(10)
    engine.processes[1].end(1)
    engine._watcher.join(10)
    assert not engine._watcher.is_alive()
    first, last = engine.errors
    assert first.hint is not None and "started again" in first.hint
    assert last.hint is None
    assert len(engine.processes) == 2 and not engine.is_alive
    engine.close()

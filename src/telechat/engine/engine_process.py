"""An engine in a process of its own, behind the channel: started, watched, started again when it dies.

The service's process stays free to talk to clients while a step runs, and outlives an engine that crashes or
is killed for memory. Knows nothing of who asked for what; it tells the owner when everything was lost.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import multiprocessing
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from telechat.engine.channel import Close, Order, Report
from telechat.engine.llm import LLM
from telechat.engine.loop import EngineLoop
from telechat.engine.sampling_params import SamplingParams
from telechat.errors import TelechatError

log = logging.getLogger(__name__)

# How long a closing engine may take to finish the step it is in.
CLOSING_SECONDS = 10.0
# An engine that dies this soon after it was ready has a reason that another start will not cure.
SHORT_LIFE_SECONDS = 60.0
MAX_SHORT_LIVES = 3


class EngineDiedError(TelechatError):
    """The engine's process ended while this request was with it."""


@dataclass(frozen=True)
class Ready:
    """What the engine's process tells when its model is loaded.

    Attributes:
        intake_settings: what `Intake` takes besides the tokenizer.
        adapters: names of those that were loaded with the model.
    """

    name: str
    max_model_len: int
    default_params: SamplingParams
    intake_settings: Mapping[str, Any]
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """Why the model could not be loaded."""

    error: Exception


class EngineProcess:
    """Starts the process, waits for its model, and keeps it running.

    Args:
        load: makes the `LLM` in the new process; must survive pickling, such as
            `functools.partial(LLM, "demo")`.
        deliver: called with each report, on a thread.
        lost: called when the process has died, on the same thread, before it is started again.
        revived: called there when it has been started again, before requests reach it.
        log_level: of the new process.

    Attributes:
        num_restarts: how often it died and was started again.

    Raises:
        Exception: what `load` raised there.
    """

    def __init__(
        self,
        load: Callable[[], LLM],
        deliver: Callable[[Report], None],
        lost: Callable[[EngineDiedError], None],
        revived: Callable[[], None],
        *,
        log_level: int = logging.WARNING,
    ) -> None:
        self._load = load
        self._deliver = deliver
        self._lost = lost
        self._revived = revived
        self._log_level = log_level
        # Held while a process is started: none is started any more once `close` has begun.
        self._starting = threading.Lock()
        self._is_closing = False
        self._short_lives = 0
        self.num_restarts = 0
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._connection, self._process = self._start()
        try:
            self.ready = self._await_ready()
        except BaseException:  # an interrupted start as well must not leave a process behind
            self._kill()
            self._connection.close()
            raise
        self._is_alive = True
        # Before multiprocessing's own exit handler, which would wait for a process that waits for orders.
        atexit.register(self.close)
        self._watcher = threading.Thread(target=self._watch, name="telechat-engine-watch", daemon=True)
        self._watcher.start()
        # Orders leave from a thread: a full pipe must not hold up the event loop.
        threading.Thread(target=self._post, name="telechat-engine-post", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        """The process runs and its model is loaded."""
        return self._is_alive

    @property
    def pid(self) -> int | None:
        """The process's number."""
        return self._process.pid

    def send(self, order: Order) -> None:
        """Hand over an order; any thread may call it. Orders to a dead engine are lost."""
        self._orders.put(order)

    def close(self) -> None:
        """End everything and wait for the process. Calling it again does nothing."""
        with self._starting:
            if self._is_closing:
                return
            self._is_closing = True
        self._orders.put(Close())
        if self._is_alive:  # one that is being started again has nothing to finish
            self._watcher.join(CLOSING_SECONDS)
            self._process.join(CLOSING_SECONDS)
        self._kill()
        self._watcher.join(CLOSING_SECONDS)
        self._connection.close()
        atexit.unregister(self.close)

    def _start(self) -> tuple[Connection, SpawnProcess]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        # Not a daemon: those may not have children, and the ranks of a tensor-parallel model are.
        process = context.Process(
            target=run_engine, args=(theirs, self._load, self._log_level), name="telechat-engine"
        )
        process.start()
        theirs.close()
        return ours, process

    def _await_ready(self) -> Ready:
        wait([self._connection, self._process.sentinel])
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise EngineDiedError(f"The engine's process {self._ending()} while loading the model.") from None
        if isinstance(answer, Failed):
            raise answer.error
        assert isinstance(answer, Ready)
        return answer

    def _ending(self) -> str:
        """How the process ended, in words. One that hangs is killed: the next one needs its memory."""
        self._process.join(CLOSING_SECONDS)
        code = self._process.exitcode
        if code is None:
            self._kill()
            return "did not end by itself and was killed"
        if code < 0:
            name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
            return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return f"ended with exit code {code}"

    def _post(self) -> None:
        while True:
            order = self._orders.get()
            # The watcher notices a dead process by itself.
            with contextlib.suppress(OSError):
                self._connection.send(order)
            if isinstance(order, Close):
                return

    def _watch(self) -> None:
        """Deliver reports until the engine is closed; start it again when it dies."""
        while True:
            born = time.monotonic()
            self._read_reports()
            self._is_alive = False
            if self._is_closing:
                return
            self._short_lives = self._short_lives + 1 if time.monotonic() - born < SHORT_LIFE_SECONDS else 0
            is_given_up = self._short_lives >= MAX_SHORT_LIVES
            error = EngineDiedError(
                f"The engine's process {self._ending()}.",
                hint=None if is_given_up else "It is being started again; try again.",
            )
            log.error("%s", error.message)
            self._lost(error)
            if is_given_up:
                log.error("it died %d times in a row; it is not started again", self._short_lives)
                return
            if not self._start_again():
                return
            self.num_restarts += 1
            self._revived()
            self._is_alive = True

    def _start_again(self) -> bool:
        """Start another process and wait for its model; whether there is one now."""
        try:
            with self._starting:
                if self._is_closing:
                    return False
                self._connection, self._process = self._start()
            self._await_ready()
        except Exception as error:  # noqa: BLE001 - whatever kept the model from loading this time
            if not self._is_closing:
                log.error("the engine could not be started again: %s", error)
            self._ending()
            return False
        return True

    def _read_reports(self) -> None:
        while True:
            try:
                report = self._connection.recv()
            except (EOFError, OSError):
                return
            self._deliver(report)

    def _kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


def run_engine(connection: Connection, load: Callable[[], LLM], log_level: int) -> None:
    """The engine's process: load, say so, work until told to close or until the owner is gone."""
    from telechat.logs import setup_logging

    setup_logging(logging.getLevelName(log_level).lower())
    # Ctrl-C reaches every process of a terminal; the owner decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        llm = load()
        loop = EngineLoop(llm.engine, llm.intake)
        ready = Ready(
            llm.name, llm.max_model_len, llm.default_params, llm.intake.settings, llm.adapters.names
        )
    except Exception as error:  # noqa: BLE001 - raised again where the user is
        connection.send(Failed(error))
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The model lives as long as the process: no use in searching it for garbage.
    gc.collect()
    gc.freeze()

    def receive(must_wait: bool) -> Sequence[Order]:
        orders: list[Order] = []
        try:
            while (must_wait and not orders) or connection.poll():
                orders.append(connection.recv())
        except (EOFError, OSError):
            return [Close()]
        return orders

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.send(ready)
        loop.run(receive, connection.send)
    gc.unfreeze()  # libraries look at the end for what was never freed
    if loop.failure is not None:
        sys.exit(1)  # the owner starts another

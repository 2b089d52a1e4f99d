"""The processes of the ranks beside rank 0: started, told what to do, watched and ended.

A process is `python -m telechat.parallel.worker` and not a fork or a spawned copy of the program, so a script
needs no `__main__` guard. Orders go to its standard input, which ends when this process does, however that
happens; what it has to report comes from its standard output, one JSON object a line. Knows nothing of
tensors.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from telechat.errors import RankError
from telechat.parallel import wire
from telechat.parallel.wire import Order

# Loading says nothing until it is done, so it has no limit but that the process lives.
_POLL_S = 0.05
_SEND_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 5.0


class RankProcess:
    """One rank's process and what it has reported."""

    def __init__(self, rank: int, environment: Mapping[str, str], on_end: Callable[[], None]) -> None:
        self.rank = rank
        self._on_end = on_end
        self.is_ready = threading.Event()
        self.has_ended = threading.Event()
        self.report: dict[str, Any] = {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "telechat.parallel.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._orders = self.process.stdin.fileno()
        os.set_blocking(self._orders, False)
        self._reader = threading.Thread(target=self._read, name=f"rank-{rank}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            if message.get("ready"):
                self.is_ready.set()
            else:
                self.report = message
        self.has_ended.set()
        self._on_end()

    def send(self, order: Order, payload: bytes) -> None:
        """Tell it something; errors as `wire.send`."""
        wire.send(self._orders, order, payload, timeout_s=_SEND_TIMEOUT_S)

    def ending(self, world_size: int) -> str:
        """How it ended, as a sentence; it must have ended or be about to."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_TIMEOUT_S)
        name = f"Rank {self.rank} of {world_size}"
        if "error" in self.report:
            return f"{name} failed: {self.report['error']}"
        code = self.process.returncode
        if code is None:
            return f"{name} does not answer."
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"{name} was ended by signal {-code} ({signal.Signals(-code).name})."
        return f"{name} ended with exit code {code}."

    def close(self) -> None:
        """End it, by force where it does not go by itself, and leave nothing behind."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        self.process.stdout.close()


class RankProcesses:
    """All ranks but 0.

    Args:
        world_size: ranks, rank 0 included.
        settings: what each is set up with besides its rank; values that JSON can hold.
        num_threads: for each.
        on_end: called from a thread when one ends, whatever for.
    """

    def __init__(
        self,
        world_size: int,
        settings: Mapping[str, Any],
        *,
        num_threads: int,
        on_end: Callable[[], None],
    ) -> None:
        self.world_size = world_size
        environment = {
            **os.environ,
            # The modules that are imported here, wherever sys.path got them from.
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": str(num_threads),
        }
        self._ranks = [RankProcess(rank, environment, on_end) for rank in range(1, world_size)]
        for process in self._ranks:
            payload = json.dumps({**settings, "rank": process.rank}).encode()
            with contextlib.suppress(OSError):  # one that is gone already is found by wait_until_ready
                process.send(Order.SET_UP, payload)

    @property
    def pids(self) -> list[int]:
        """Process ids in the order of the ranks."""
        return [process.process.pid for process in self._ranks]

    def wait_until_ready(self) -> None:
        """Return when all have loaded.

        Raises:
            RankError: one has ended instead.
        """
        while not all(process.is_ready.is_set() for process in self._ranks):
            self.raise_if_ended()
            time.sleep(_POLL_S)

    def send(self, order: Order, payload: bytes = b"") -> None:
        """Tell all of them something.

        Raises:
            RankError: one has ended or does not read.
        """
        for process in self._ranks:
            try:
                process.send(order, payload)
            except (BrokenPipeError, TimeoutError) as error:
                raise self._error(process) from error

    def raise_if_ended(self, *, within_s: float = 0.0) -> None:
        """Raise a RankError that says which rank has ended, if one has or does so within this time."""
        deadline = time.monotonic() + within_s
        while True:
            for process in self._ranks:
                if process.has_ended.is_set() or process.process.poll() is not None:
                    raise self._error(process)
            if time.monotonic() >= deadline:
                return
            time.sleep(_POLL_S)

    def _error(self, process: RankProcess) -> RankError:
        hint = process.report.get("hint") or "Requests that were running are lost; start the engine again."
        return RankError(process.ending(self.world_size), hint=hint)

    def close(self) -> None:
        """End all of them; returns when none is left."""
        for process in self._ranks:
            with contextlib.suppress(OSError):
                assert process.process.stdin is not None
                process.process.stdin.close()
        for process in self._ranks:
            process.close()

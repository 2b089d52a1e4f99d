"""An engine on a thread of this process, behind the channel. For tests and for models already loaded."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from telechat.engine.channel import Close, Order, Report
from telechat.engine.engine_process import EngineDiedError
from telechat.engine.loop import EngineLoop

log = logging.getLogger(__name__)


class EngineThread:
    """Runs a loop on a thread.

    Args:
        loop: belongs to the thread from now on.
        deliver: called there with each report.
        lost: called there if the loop fails, and with it every request.
    """

    def __init__(
        self, loop: EngineLoop, deliver: Callable[[Report], None], lost: Callable[[EngineDiedError], None]
    ) -> None:
        self.loop = loop
        self._deliver = deliver
        self._lost = lost
        self._has_failed = False
        self._orders: deque[Order] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="telechat-engine", daemon=True)
        self._thread.start()

    def send(self, order: Order) -> None:
        """Hand over an order; any thread may call it."""
        with self._changed:
            self._orders.append(order)
            self._changed.notify()

    def close(self) -> None:
        """End everything and wait for the thread. Calling it again does nothing."""
        self.send(Close())
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Orders are still carried out."""
        return self._thread.is_alive() and not self._has_failed

    @property
    def num_restarts(self) -> int:
        """A thread is never started again."""
        return 0

    def _run(self) -> None:
        try:
            self.loop.run(self._receive, self._deliver)
        except Exception as error:  # nobody must wait for a thread that is gone
            log.exception("the engine's thread has failed")
            self._has_failed = True
            self._lost(EngineDiedError(f"The engine has failed: {type(error).__name__}: {error}"))

    def _receive(self, wait: bool) -> Sequence[Order]:
        with self._changed:
            while wait and not self._orders:
                self._changed.wait()
            orders = list(self._orders)
            self._orders.clear()
        return orders

"""Ctrl-C and SIGTERM in a run of one process: it finishes its step and is saved before it ends.

Several processes would all have to stop at the same step; they do not use this and end at once. Knows nothing
of steps or checkpoints: the loop asks whether to stop.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2
_NOTE = b"\nstopping after this step; the same again ends at once, without saving\n"


class Interruption:
    """Within it, the first Ctrl-C or SIGTERM is only noted; a second one ends the process at once.

    A signal that the process ignores, as a shell's background commands ignore Ctrl-C, stays ignored. Outside
    the main thread, where Python gives nobody signals, this does nothing.

    Attributes:
        number: of the signal; None as long as there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                previous = signal.getsignal(number)
                if previous not in (signal.SIG_IGN, None):
                    assert previous is not None
                    self._previous[number] = previous
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def end(self) -> None:
        """End as the signal asked, if there was one.

        Raises:
            KeyboardInterrupt: it was Ctrl-C.
            SystemExit: it was SIGTERM; the exit code is 143.
        """
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            raise SystemExit(128 + self.number)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
        os.write(_STDERR, _NOTE)  # not by Python's own stream: the signal may have come while it writes

"""Threads and the instruction set level that kernels run with.

A context is handed to every operation; there is no global one. Calls on one context wait for each other.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable
from typing import Literal

import torch

from telechat.errors import DeviceError, UsageError
from telechat.ops.cpu import library

Isa = Literal["portable", "avx2", "avx512", "amx"]
LEVELS: tuple[Isa, ...] = ("portable", "avx2", "avx512", "amx")
VARIABLE = "TELECHAT_ISA"


def available_levels() -> tuple[Isa, ...]:
    """The levels that this machine runs, lowest first.

    Raises:
        DeviceError: there is no library.
    """
    return LEVELS[: library.load().tc_best_level() + 1]


def choose_level(name: str | None = None) -> Isa:
    """The level of that name, else of the variable TELECHAT_ISA, else the highest there is.

    Raises:
        UsageError: no level has that name.
        DeviceError: this machine cannot run it, or there is no library.
    """
    name = name or os.environ.get(VARIABLE) or None
    available = available_levels()
    if name is None:
        return available[-1]
    for level in LEVELS:
        if level == name:
            if level in available:
                return level
            raise DeviceError(
                f"The instruction set level {name} was asked for; this processor has {', '.join(available)}.",
                hint=f"Unset {VARIABLE} or choose another level.",
            )
    raise UsageError(f"Unknown instruction set level {name!r}.", hint=f"Choose {', '.join(LEVELS)}.")


class Context:
    """A thread pool, a level and scratch memory, for one engine.

    Args:
        num_threads: threads that work, the caller included; torch's number by default.
        isa: level by name; by default TELECHAT_ISA, else the highest there is.

    Raises:
        UsageError, DeviceError: as `choose_level`; fewer than one thread.
    """

    def __init__(self, num_threads: int | None = None, isa: str | None = None) -> None:
        self.num_threads = torch.get_num_threads() if num_threads is None else num_threads
        if self.num_threads < 1:
            raise UsageError(f"num_threads is {self.num_threads}; it must be at least 1.")
        self.isa = choose_level(isa)
        self.library = library.load()
        self.handle: int = self.library.tc_context_new(self.num_threads, LEVELS.index(self.isa))
        assert self.handle, "the level is available and there is a thread"
        self._close = free_later(self, _free, self.library.tc_context_free, self.handle, os.getpid())

    def close(self) -> None:
        """End the threads and give the scratch memory back; happens by itself when nobody refers to it."""
        self._close()


def free_later(owner: object, free: Callable[..., None], *args: object) -> weakref.finalize[..., object]:
    """Call `free(*args)` when nobody refers to `owner` any more; not at the end of the program.

    Threads that nobody waits for, such as an engine's, may still be computing then: what they use must stay.
    """
    finalizer = weakref.finalize(owner, free, *args)
    finalizer.atexit = False
    return finalizer


def _free(free: Callable[[int], None], handle: int, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has none of the threads that this would wait for
        free(handle)


def shared_context(num_threads: int | None = None, isa: str | None = None) -> Context:
    """One context per number of threads and level, for callers that keep none of their own.

    Those who take turns should share it: the threads of one pool would be in the way of another's.
    """
    return _shared(torch.get_num_threads() if num_threads is None else num_threads, isa)


_shared = functools.cache(Context)

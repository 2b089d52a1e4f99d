"""Bars on stderr, for verbs that answer rows and for those that read files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, drawn where that is a terminal; yields the function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("rows", total=total, completed=done)
        yield lambda count: progress.advance(task, count)


@contextmanager
def bytes_bar(title: str) -> Iterator[Callable[[int], Callable[[int], None]]]:
    """A bar of bytes on stderr, drawn where that is a terminal, once the total is known.

    Yields a function that takes the total and returns the function that advances the bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    progress = Progress(*columns, console=console, disable=not console.is_terminal)

    def start(total: int) -> Callable[[int], None]:
        progress.start()
        task = progress.add_task(title, total=total)
        return lambda count: progress.advance(task, count)

    try:
        yield start
    finally:
        progress.stop()

"""A progress bar on stderr for offline generation. Knows only counts."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class Progress:
    """A context manager; does nothing unless enabled.

    Args:
        num_requests: requests in all.
        enabled: show the bar.
    """

    def __init__(self, num_requests: int, *, enabled: bool) -> None:
        self._num_requests = num_requests
        self._num_tokens = 0
        self._bar: RichProgress | None = _make_bar() if enabled else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("generate", total=self._num_requests, tokens=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, *, num_tokens: int = 0, num_requests: int = 0) -> None:
        """So many more tokens were generated, so many more requests are done."""
        if self._bar is not None:
            self._num_tokens += num_tokens
            self._bar.update(self._task, tokens=self._num_tokens, advance=num_requests)


def _make_bar() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tokens]} tokens"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )

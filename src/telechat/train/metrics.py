"""Metrics of a run: one JSON line each in `metrics.jsonl`, further loggers, and what the terminal shows."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from telechat.train.loggers import Logger

PEAK = "peak_memory_bytes"
_REDRAW_SECONDS = 0.2


class Metrics:
    """Appends rows to `metrics.jsonl`; rows past the resumed step are cut off first.

    What is no finite number is null there, as the gradient norm of a step that overflowed in fp16.

    Args:
        folder: the run's folder.
        resumed_step: the step that training continues from.
        loggers: further places.
    """

    def __init__(self, folder: Path, *, resumed_step: int, loggers: Sequence[Logger] = ()) -> None:
        self.path = folder / "metrics.jsonl"
        self.loggers = loggers
        self.rows = [row for row in read_metrics(self.path) if row["step"] <= resumed_step]
        folder.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")  # a run killed here keeps the rows it had
        partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        os.replace(partial, self.path)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        row = {"step": step, **finite}
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        for logger in self.loggers:
            logger.add(step, values)

    def close(self) -> None:
        """Close the loggers."""
        for logger in self.loggers:
            logger.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; none if it does not exist. A torn last line (a killed run) is left out."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Progress:
    """What the terminal shows: a line that is redrawn at each step, and one that stays for each metric row.

    Args:
        first_step, total_steps: where this process begins and where the run ends.
        stream: the live line is drawn where this is a terminal.
    """

    def __init__(self, *, first_step: int, total_steps: int, stream: TextIO = sys.stderr) -> None:
        self._first_step = first_step
        self._total_steps = total_steps
        self._stream = stream
        self._started = time.monotonic()
        self._drawn_at = 0.0
        self._width = 0

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Redraw the live line, at most five times a second."""
        now = time.monotonic()
        if not self._stream.isatty() or now - self._drawn_at < _REDRAW_SECONDS:
            return
        self._drawn_at = now
        text = (
            f"step {step}/{self._total_steps}  loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  "
            f"{self.remaining(step)} left"
        )
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Print a line that stays."""
        shown = [f"{name} {_short(name, value)}" for name, value in values.items() if name in _SHOWN]
        text = f"step {step}/{self._total_steps}  {'  '.join(shown)}  {self.remaining(step)} left"
        start = "\r" if self._width else ""
        print(start + text.ljust(self._width), file=self._stream, flush=True)
        self._width = 0

    def remaining(self, step: int) -> str:
        """Time to the end at the pace of this process so far, as h:mm:ss."""
        done = max(1, step - self._first_step)
        seconds = (time.monotonic() - self._started) / done * (self._total_steps - step)
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


_SHOWN = ("loss", "evaluation_loss", "grad_norm", "lr", "tokens_per_second", "mfu")


def _short(name: str, value: float) -> str:
    match name:
        case "lr":
            return f"{value:.2e}"
        case "tokens_per_second":
            return f"{value:,.0f}"
        case "mfu":
            return f"{value:.1%}"
    return f"{value:.4f}"

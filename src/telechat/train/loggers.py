"""Metrics to TensorBoard, Weights & Biases and SwanLab. Each package is imported only when it is named.

A run that is resumed goes on in the same place, and shows no step twice.
"""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from telechat.errors import MissingExtraError
from telechat.train.config import LoggerName


class Logger(Protocol):
    """Takes the metrics of a run."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


class TensorBoard:
    """Event files in the run's folder `tensorboard`; what stood there past the resumed step is hidden."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], resumed_step: int) -> None:
        _require("tensorboard")
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(log_dir=str(folder / "tensorboard"), purge_step=resumed_step + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # or a run that is killed loses up to two minutes of rows before its checkpoint

    def close(self) -> None:
        """See `Logger`."""
        self._writer.close()


class Tracker:
    """A package with `init`, `log` and `finish`: Weights & Biases, or SwanLab. The run has the folder's name.

    Both leave out rows of steps that they have already, so a resumed run adds what is new. Project, account
    and mode come from the package's own environment variables.
    """

    def __init__(
        self, package: str, folder: Path, settings: Mapping[str, Any], resumed_step: int, **names: str
    ) -> None:
        self._package = _require(package)
        run_id = _run_id(package, folder, resumed_step)
        self._package.init(config=dict(settings), id=run_id, resume="allow", **names)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        self._package.log(dict(values), step=step)

    def close(self) -> None:
        """See `Logger`."""
        self._package.finish()


def _run_id(package: str, folder: Path, resumed_step: int) -> str:
    """What a tracker knows this run by: kept in the folder until a run begins anew there."""
    given = os.environ.get(f"{package.upper()}_RUN_ID")
    if given:
        return given
    path = folder / f"{package}.id"
    if resumed_step == 0 or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Older versions of SwanLab insist on 21 characters.
        path.write_text(uuid.uuid4().hex[:21], encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _wandb(folder: Path, settings: Mapping[str, Any], resumed_step: int) -> Logger:
    return Tracker("wandb", folder, settings, resumed_step, name=folder.name, dir=str(folder))


def _swanlab(folder: Path, settings: Mapping[str, Any], resumed_step: int) -> Logger:
    names = {"experiment_name": folder.name, "logdir": str(folder / "swanlab")}
    return Tracker("swanlab", folder, settings, resumed_step, **names)


LOGGERS: dict[LoggerName, Callable[[Path, Mapping[str, Any], int], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": _wandb,
    "swanlab": _swanlab,
}


def open_loggers(
    names: Sequence[LoggerName], folder: Path, settings: Mapping[str, Any], *, resumed_step: int = 0
) -> list[Logger]:
    """The loggers of these names.

    Args:
        folder: the run's folder.
        settings: the resolved recipe, recorded where the package takes it.
        resumed_step: the step that training continues from.

    Raises:
        MissingExtraError: a package is not installed.
    """
    return [LOGGERS[name](folder, settings, resumed_step) for name in names]


def _require(package: str) -> Any:
    """The package, which its extra is named after."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, package) from error

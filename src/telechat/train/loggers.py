"""Metrics to TensorBoard, Weights & Biases and SwanLab. Each package is imported only when it is named."""

from __future__ import annotations

import importlib
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
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        _require("tensorboard", "tensorboard")
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(log_dir=str(folder / "tensorboard"))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Logger`."""
        self._writer.close()


class Tracker:
    """A package with `init`, `log` and `finish`: Weights & Biases, or SwanLab. The run has the folder's name.

    Project, account and mode come from the package's own environment variables.
    """

    def __init__(self, package: str, folder: Path, settings: Mapping[str, Any], **names: str) -> None:
        self._package = _require(package, package)
        self._package.init(config=dict(settings), **names)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        self._package.log(dict(values), step=step)

    def close(self) -> None:
        """See `Logger`."""
        self._package.finish()


def _wandb(folder: Path, settings: Mapping[str, Any]) -> Logger:
    return Tracker("wandb", folder, settings, name=folder.name, dir=str(folder))


def _swanlab(folder: Path, settings: Mapping[str, Any]) -> Logger:
    return Tracker("swanlab", folder, settings, experiment_name=folder.name, logdir=str(folder / "swanlab"))


LOGGERS: dict[LoggerName, Callable[[Path, Mapping[str, Any]], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": _wandb,
    "swanlab": _swanlab,
}


def open_loggers(names: Sequence[LoggerName], folder: Path, settings: Mapping[str, Any]) -> list[Logger]:
    """The loggers of these names.

    Args:
        folder: the run's folder.
        settings: the resolved recipe, recorded where the package takes it.

    Raises:
        MissingExtraError: a package is not installed.
    """
    return [LOGGERS[name](folder, settings) for name in names]


def _require(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, extra) from error

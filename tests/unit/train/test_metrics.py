"""Metrics on disk, in the terminal, in the page and in the packages that a recipe names."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from telechat.errors import MissingExtraError
from telechat.train.loggers import open_loggers
from telechat.train.metrics import Metrics, Progress, read_metrics
from telechat.train.report import write_loss_page

ROW = {"loss": 2.5, "grad_norm": 1.0, "lr": 1e-3, "tokens_per_second": 1234.5, "mfu": 0.25}


def test_rows_past_the_resumed_step_are_cut_off(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, resumed_step=0)
    for step in (1, 2, 3):
        metrics.add(step, ROW)
    with metrics.path.open("a") as out:
        out.write('{"step": 4, "lo')  # killed while writing
    again = Metrics(tmp_path, resumed_step=2)
    assert [row["step"] for row in again.rows] == [1, 2]
    again.add(3, {"loss": 1.0})
    assert read_metrics(metrics.path)[-1] == {"step": 3, "loss": 1.0}


def test_what_is_no_number_is_null_in_the_file_and_left_out_of_the_page(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, resumed_step=0)
    metrics.add(1, {**ROW, "grad_norm": float("inf")})
    metrics.add(2, ROW)
    first, _ = metrics.path.read_text().splitlines()
    assert json.loads(first, parse_constant=pytest.fail)["grad_norm"] is None
    write_loss_page(metrics.rows, tmp_path / "loss.html", title="A")
    assert (tmp_path / "loss.html").read_text().count("<polyline") == 4
    assert Metrics(tmp_path, resumed_step=2).rows == metrics.rows


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_line_is_redrawn_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("telechat.train.metrics.time.monotonic", lambda: next(clock))
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        progress = Progress(first_step=0, total_steps=100, stream=stream)
        progress.step(1, 2.0, 500.0)
        progress.step(2, 1.5, 600.0)
        progress.row(2, ROW)
    assert terminal.getvalue().count("\r") == 3
    assert "step 2/100  loss 1.5000  600 tokens/s" in terminal.getvalue()
    assert "\r" not in pipe.getvalue() and pipe.getvalue().count("\n") == 1
    assert "loss 2.5000" in pipe.getvalue() and "mfu 25.0%" in pipe.getvalue()


def test_the_time_left_goes_by_the_pace_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("telechat.train.metrics.time.monotonic", lambda: now[0])
    progress = Progress(first_step=50, total_steps=150, stream=io.StringIO())
    now[0] = 100.0
    assert progress.remaining(75) == "0:05:00"


def test_the_page_stands_alone_and_shows_the_evaluation(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": step, **ROW, "loss": 5.0 / step} for step in range(1, 50)]
    write_loss_page(rows, tmp_path / "loss.html", title="A <run>")
    page = (tmp_path / "loss.html").read_text()
    assert "A &lt;run&gt;" in page and "http" not in page and "src=" not in page
    assert page.count("<polyline") == 4 and "evaluation" not in page
    write_loss_page([*rows, {"step": 49, "evaluation_loss": 1.0}], tmp_path / "loss.html", title="A")
    page = (tmp_path / "loss.html").read_text()
    assert page.count("<polyline") == 5 and "evaluation loss" in page


def stand_in(monkeypatch: pytest.MonkeyPatch, package: str) -> list[tuple[Any, ...]]:
    """A module of that name that writes down how it is called."""
    calls: list[tuple[Any, ...]] = []
    module = types.ModuleType(package)
    module.init = lambda **names: calls.append(("init", names))  # type: ignore[attr-defined]
    module.log = lambda values, step: calls.append(("log", values, step))  # type: ignore[attr-defined]
    module.finish = lambda: calls.append(("finish",))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package, module)
    return calls


@pytest.mark.parametrize("package", ["wandb", "swanlab"])
def test_trackers_get_settings_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    calls = stand_in(monkeypatch, package)
    loggers = open_loggers([package], tmp_path / "run-7", {"seed": 7})  # type: ignore[list-item]
    metrics = Metrics(tmp_path, resumed_step=0, loggers=loggers)
    metrics.add(3, {"loss": 2.0})
    metrics.close()
    assert calls[0][1]["config"] == {"seed": 7} and "run-7" in calls[0][1].values()
    assert calls[1:] == [("log", {"loss": 2.0}, 3), ("finish",)]


def test_a_tracker_goes_on_with_the_same_run_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    calls = stand_in(monkeypatch, "wandb")
    for resumed_step in (0, 5, 5, 0):  # the last one begins anew in the same folder
        open_loggers(["wandb"], tmp_path, {}, resumed_step=resumed_step)
    first, second, third, fresh = (names["id"] for _, names in calls)
    assert first == second == third != fresh and all(names["resume"] == "allow" for _, names in calls)
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    open_loggers(["wandb"], tmp_path, {}, resumed_step=5)
    assert calls[-1][1]["id"] == "mine"


def test_tensorboard_gets_scalars_at_once_and_drops_those_past_the_resumed_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []

    class SummaryWriter:
        def __init__(self, log_dir: str, purge_step: int) -> None:
            written.append((log_dir, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            written.append("flushed")

        def close(self) -> None:
            written.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    (logger,) = open_loggers(["tensorboard"], tmp_path, {}, resumed_step=2)
    logger.add(3, {"loss": 2.0})
    logger.close()
    assert written == [(str(tmp_path / "tensorboard"), 3), ("loss", 2.0, 3), "flushed", "closed"]


def test_a_package_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "swanlab", None)
    with pytest.raises(MissingExtraError, match="swanlab"):
        open_loggers(["swanlab"], tmp_path, {})

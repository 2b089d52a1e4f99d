"""Ctrl-C and SIGTERM in a run of one process: its step is finished and saved, the next command continues."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.test_train_launch import losses, write_recipe

from telechat.cli.main import main
from telechat.train.interruption import Interruption
from telechat.train.metrics import Metrics


class NotCaught(Exception):
    """A signal came through."""


@pytest.fixture(autouse=True)
def signals_that_come_through() -> Iterator[None]:
    """Handlers that fail the test where the run does not put its own in their place."""

    def fail(number: int, _: object) -> None:
        raise NotCaught(number)

    previous = {number: signal.signal(number, fail) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def exit_code(recipe: Path, folder: Path) -> int:
    """Of `telechat train`."""
    try:
        return main(["train", "--config", str(recipe), "--output.folder", str(folder)])
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_work(
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_folder, steps=4)  # written every five steps
    add = Metrics.add

    def add_and_interrupt(metrics: Metrics, step: int, values: Mapping[str, float]) -> None:
        add(metrics, step, values)
        if step == 2:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "add", add_and_interrupt)
        assert exit_code(recipe, tmp_path / "parts") == 128 + number
    written = capfd.readouterr().err
    assert "stopping after this step" in written and "step 2 is saved" in written
    assert [path.name for path in (tmp_path / "parts/checkpoints").iterdir()] == ["step-00000002"]
    assert (tmp_path / "parts/loss.html").exists() and not (tmp_path / "parts/model").exists()
    assert exit_code(recipe, tmp_path / "parts") == 0 == exit_code(recipe, tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ends = [load_file(tmp_path / name / "model/model.safetensors") for name in ("parts", "whole")]
    assert all(torch.equal(ends[0][name], weight) for name, weight in ends[1].items())


def test_the_second_signal_ends_at_once_and_afterwards_all_is_as_before() -> None:
    with Interruption() as interruption:
        interruption.end()  # nothing came yet
        signal.raise_signal(signal.SIGTERM)
        assert interruption.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with pytest.raises(SystemExit) as caught:
        interruption.end()
    assert caught.value.code == 143
    with pytest.raises(NotCaught):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
    assert interruption.number is None

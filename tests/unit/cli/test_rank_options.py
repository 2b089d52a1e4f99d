"""Ranks on the command line of `chat`, `generate`, `serve` and `eval demo`: flag, environment, default."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from tests.unit.cli.test_engine_options import VERBS, LoadedError, loaded

from telechat.cli.main import main

__all__ = ["loaded"]


def settings_of(loaded: dict[str, Any], words: str, verb: str = "generate") -> dict[str, Any]:
    with pytest.raises(LoadedError):
        main([*VERBS[verb], *words.split()])
    return loaded


@pytest.mark.parametrize("verb", VERBS)
def test_flags_arrive(loaded: dict[str, Any], verb: str) -> None:
    found = settings_of(loaded, "--tp 4 --ep 2 --master-port 20031 --no-bind-cpu", verb)
    wanted = {"tp": 4, "ep": 2, "master_port": 20031, "bind_cpu": False}
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize("verb", VERBS)
def test_the_environment_arrives(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("TP_WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "20030")
    monkeypatch.setenv("BIND_CPU", "0")
    found = settings_of(loaded, "", verb)
    assert (found["tp"], found["master_port"], found["bind_cpu"]) == (2, 20030, False)


def test_flags_win_over_the_environment(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TP_WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "20030")
    monkeypatch.setenv("BIND_CPU", "0")
    found = settings_of(loaded, "--tp 4 --master-port 20031 --bind-cpu")
    assert (found["tp"], found["master_port"], found["bind_cpu"]) == (4, 20031, True)


def test_nothing_given_leaves_the_defaults(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TP_WORLD_SIZE", "")
    assert not settings_of(loaded, "").keys() & {"tp", "ep", "master_port", "bind_cpu"}


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("TP_WORLD_SIZE", "two", "TP_WORLD_SIZE: 'two' is not a whole number"),
        ("TP_WORLD_SIZE", "0", "TP_WORLD_SIZE: 0 is below 1"),
        ("MASTER_PORT", "99999", "MASTER_PORT: 99999 is not a port"),
        ("BIND_CPU", "maybe", "BIND_CPU: 'maybe' is neither 1 nor 0"),
    ],
)
def test_variables_that_cannot_be(
    loaded: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    text: str,
    message: str,
) -> None:
    monkeypatch.setenv(variable, text)
    assert main(VERBS["generate"]) == 2
    assert message in capsys.readouterr().err
    assert not loaded


@pytest.mark.parametrize("words", ["--devices 0,0", "--devices all", "--devices 0,", "--tp 0", "--ep x"])
def test_flags_that_cannot_be(loaded: dict[str, Any], capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert main([*VERBS["generate"], *words.split()]) == 2
    assert words.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_devices_win_over_the_environment(
    loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    for variable in ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "5")
    monkeypatch.setattr("telechat.device.resolve_device", lambda name: torch.device("meta"))
    settings_of(loaded, "", verb)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == os.environ["ASCEND_RT_VISIBLE_DEVICES"] == "5"
    settings_of(loaded, "--devices 3,1", verb)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == os.environ["ASCEND_RT_VISIBLE_DEVICES"] == "3,1"


def test_devices_of_a_cpu_are_refused(
    loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "")  # so that what the command sets is undone
    assert main([*VERBS["generate"], "--device", "cpu", "--devices", "0"]) == 2
    assert "the model would run on the CPU" in capsys.readouterr().err

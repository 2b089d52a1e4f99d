"""Building the peers: what is asked of pip and CMake, and what is said when it fails. Nothing is built."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from benchmarks import record
from benchmarks.peers import build


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that would be run; llama.cpp says that it has AMX."""
    commands: list[list[str]] = []
    monkeypatch.setattr(record, "machine", lambda: {"flags": ["amx_int8"]})
    monkeypatch.setenv("TELECHAT_BENCH_PEERS", str(tmp_path / "some where"))

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir()
        if "pip" in command:
            arguments = shlex.split(options["env"]["CMAKE_ARGS"])
            assert "-DGGML_NATIVE=ON" in arguments
            assert f"-DCMAKE_CXX_FLAGS=-include {build.HEADER}" in arguments
        return subprocess.CompletedProcess(command, 0, stdout="CPU : AMX_INT8 = 1 |\n")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_built_once(calls: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert not build.is_built()
    assert build.main() == 0
    assert ["venv" in call for call in calls] == [True, False, False]
    assert ["pip" in call for call in calls] == [False, True, False]
    [install] = [call for call in calls if "pip" in call]
    assert install[0] == str(build.peer_python())
    assert install[install.index("--no-binary") + 1] == "llama-cpp-python"
    assert build.is_built()
    calls.clear()
    assert build.main() == 0
    assert len(calls) == 1
    assert capsys.readouterr().out == "CPU : AMX_INT8 = 1 |\n" * 2


def test_a_build_that_fails_says_so_and_leaves_no_stamp(
    calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> None:
        raise subprocess.CalledProcessError(1, ["python", "-m", "pip", "install", "everything"])

    monkeypatch.setattr(build, "build", failing)
    assert build.main() == 1
    assert not build.is_built() and not calls
    assert "python -m pip install ... ended with 1" in capsys.readouterr().err


@pytest.mark.parametrize("has_amx", [True, False])
def test_a_peer_without_amx_is_announced(
    calls: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    has_amx: bool,
) -> None:
    del calls
    monkeypatch.setattr(build, "build", lambda: build.environment_folder().mkdir())
    monkeypatch.setattr(build, "system_info", lambda: "CPU : AVX512 = 1 |")
    monkeypatch.setattr(record, "machine", lambda: {"flags": ["amx_int8"] if has_amx else ["avx2"]})
    assert build.main() == 0
    assert ("left out" in capsys.readouterr().err) == has_amx

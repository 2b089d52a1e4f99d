"""The program that counts instructions under an emulator builds, and counts for the library it is given."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from telechat.ops.cpu import build, library
from telechat.ops.cpu.context import LEVELS, available_levels

PROGRAM = Path(__file__).resolve().parents[3] / "benchmarks" / "kernel_count.c"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    obstacle = library.obstacle()
    if obstacle or platform.machine() != "x86_64":
        pytest.skip(obstacle or "reads the time stamp counter of x86-64")
    made = tmp_path_factory.mktemp("count") / "kernel_count"
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", f"-I{build.SOURCE_FOLDER}"]
    subprocess.run([*build.find_compiler(), *flags, str(PROGRAM), "-o", str(made), "-ldl"], check=True)
    return made


def test_counts_every_format(program: Path) -> None:
    level = LEVELS.index(available_levels()[-1])
    done = subprocess.run(
        [program, str(library.find()), str(level)], capture_output=True, text=True, check=True
    )
    counts = [line.split() for line in done.stdout.splitlines()]
    formats = ("int4", "int8", "bfloat16", "compact")
    assert [(name, int(rows)) for name, rows, _ in counts] == [
        (f, rows) for f in formats for rows in (1, 8, 128)
    ]
    # On a real processor they are times, which say nothing here.
    assert all(int(ticks) > 0 for *_, ticks in counts)


def test_a_library_that_is_missing(program: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.so"
    done = subprocess.run([program, str(missing), "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(missing) in done.stderr
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "kernel_count LIBRARY LEVEL" in done.stderr

"""The kernels in a program of their own, at every level here; the portable one emulated on aarch64 too."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from telechat.ops.cpu import build, library
from telechat.ops.cpu.context import LEVELS, Isa

CHECK = Path(__file__).with_name("kernel_check.c")
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")


def compiled(command: list[str], program: Path) -> Path:
    """`program`, made by `command` without a warning."""
    done = subprocess.run([*command, "-o", str(program), "-lm"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    return program


def said(command: list[str]) -> str:
    """What a program prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def native_program(folder: Path) -> Path:
    """The program linked with the library of this machine."""
    obstacle = library.obstacle()
    if obstacle:
        pytest.skip(f"no CPU kernels: {obstacle}")
    made = library.find()
    flags = (*build.FLAGS, f"-I{build.SOURCE_FOLDER}", str(CHECK), str(made), f"-Wl,-rpath,{made.parent}")
    return compiled([*build.find_compiler(), *flags], folder / "native")


def test_every_level_here(isa: Isa, tmp_path: Path) -> None:
    result = said([str(native_program(tmp_path)), str(LEVELS.index(isa))])
    assert result.startswith("0 failures, results ")


def test_portable_kernels_for_aarch64(tmp_path: Path) -> None:
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    emulator = next((found for name in EMULATORS if (found := shutil.which(name))), None)
    if compiler is None or emulator is None:
        pytest.skip("needs aarch64-linux-gnu-gcc and qemu-user")
    # The portable level of x86 has no fused multiply-add; without it aarch64 rounds alike.
    flags = (*build.FLAGS, "-ffp-contract=off", f"-I{build.SOURCE_FOLDER}", "-static", str(CHECK))
    sources = [build.SOURCE_FOLDER / f"{name}.c" for name in (*build.PLAIN_FILES, *build.LEVEL_FILES)]
    program = compiled([compiler, *flags, *map(str, sources)], tmp_path / "aarch64")
    result = said([emulator, str(program)])
    assert result.startswith("0 failures, results ")
    assert result == said([str(native_program(tmp_path))])

"""The portable kernels as a program of their own, on this processor and, emulated, on aarch64."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from telechat.ops.cpu import build

CHECK = Path(__file__).with_name("portable_check.c")
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")


def compile_check(compiler: list[str], folder: Path, *flags: str) -> Path:
    sources = [build.SOURCE_FOLDER / f"{name}.c" for name in (*build.PLAIN_FILES, *build.LEVEL_FILES)]
    program = folder / "check"
    command = [*compiler, *build.FLAGS, *flags, f"-I{build.SOURCE_FOLDER}", str(CHECK), *map(str, sources)]
    done = subprocess.run([*command, "-o", str(program), "-lm"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    return program


def test_portable_kernels_for_aarch64(tmp_path: Path) -> None:
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    emulator = next((found for name in EMULATORS if (found := shutil.which(name))), None)
    if compiler is None or emulator is None:
        pytest.skip("needs aarch64-linux-gnu-gcc and qemu-user")
    program = compile_check([compiler], tmp_path, "-static")
    done = subprocess.run([emulator, str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0 failures\n")

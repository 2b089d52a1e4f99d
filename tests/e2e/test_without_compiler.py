"""An installation where there is no C compiler: its kernels are there and pass the tests of the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNEL_TESTS = ROOT / "tests" / "unit" / "ops" / "cpu"

pytestmark = [
    pytest.mark.installs,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.name == "nt", reason="no kernels on Windows"),
]


def test_pip_brings_a_compiler_for_the_kernels(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "TELECHAT_PURE_WHEEL")}
    without = {**kept, "PATH": str(empty)}
    make = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(make, env=without, check=True)
    (wheel,) = tmp_path.glob("telechat-*.whl")
    assert "none-any" not in wheel.name
    cache = tmp_path / "cache" / "kernels"
    cache.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".so")]
        (cache / Path(name).name).write_bytes(archive.read(name))
    # A library that is not found here cannot be built either: these tests run on the one from the wheel.
    tested = [sys.executable, "-m", "pytest", "-q", "-n", "auto", str(KERNEL_TESTS)]
    # Compiles a program itself.
    tested += ["--ignore", str(KERNEL_TESTS / "test_kernel_check.py")]
    subprocess.run(tested, env={**without, "TELECHAT_CACHE": str(cache.parent)}, cwd=ROOT, check=True)

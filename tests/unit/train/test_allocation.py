"""Freed blocks go back to the system, whatever small ones stand between them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import os, sys
from telechat.train.allocation import return_freed_blocks

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

chosen = return_freed_blocks() if "choose" in sys.argv else False
b"x" * (1 << 24)  # once freed, glibc by itself keeps whatever is smaller
before = resident()
kept = []
for _ in range(64):
    large = [b"x" * (1 << 20) for _ in range(4)]
    kept.append((large, b"x" * (1 << 17)))
for large, _ in kept:
    large.clear()
print(chosen, (resident() - before) >> 20)
"""


def held_mib(*words: str, **environment: str) -> tuple[str, int]:
    """Whether glibc was told, and how many MiB a process holds of the 256 that it freed and the 8 it kept."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    chosen, held = done.stdout.split()
    return chosen, int(held)


glibc = pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library")


@glibc
def test_freed_blocks_go_back() -> None:
    chosen, held = held_mib("choose")
    assert chosen == "True" and held < 40
    assert held_mib()[1] > 200  # or this test could not fail

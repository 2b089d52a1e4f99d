"""`telechat doctor` says which kernels of ours the CPU has, or why none."""

from __future__ import annotations

import pytest
from tests.unit.ops.cpu.conftest import skip_without_kernels

from telechat.cli.doctor import kernel_rows


def shown() -> str:
    return dict(kernel_rows())["cpu, telechat's own"]


def test_level(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_kernels()
    monkeypatch.setenv("TELECHAT_ISA", "portable")
    assert shown() == "level portable"
    monkeypatch.setenv("TELECHAT_ISA", "abacus")
    assert shown().startswith("none: Unknown instruction set level 'abacus'")


def test_what_is_lost_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telechat.ops.cpu.library._attempt", lambda: "no C compiler was found")
    assert shown().startswith("none: no C compiler was found. Models run on torch, slower")

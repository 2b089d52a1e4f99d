"""Every kernel test runs at every instruction set level of this machine, with one thread and with several."""

from __future__ import annotations

import pytest

from telechat.ops.cpu import library
from telechat.ops.cpu.context import LEVELS, Context, available_levels, shared_context


def skip_without_kernels() -> None:
    obstacle = library.obstacle()
    if obstacle:
        pytest.skip(f"no CPU kernels: {obstacle}")


@pytest.fixture(params=LEVELS)
def isa(request: pytest.FixtureRequest) -> str:
    """A level by name; skipped where this processor lacks it."""
    skip_without_kernels()
    if request.param not in available_levels():
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)


@pytest.fixture(params=[1, 3], ids=["1thread", "3threads"])
def context(isa: str, request: pytest.FixtureRequest) -> Context:
    """A context of that level."""
    return shared_context(request.param, isa)


@pytest.fixture
def any_context() -> Context:
    """A context of the best level, where the level does not matter."""
    skip_without_kernels()
    return shared_context(2)

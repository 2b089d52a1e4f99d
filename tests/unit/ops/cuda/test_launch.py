"""Whether Triton can run is found by running it; what stands in the way is named."""

from __future__ import annotations

import pytest
import torch

from telechat.ops.cuda import launch
from telechat.ops.cuda.kernels import probe


@pytest.fixture(autouse=True)
def asked_anew(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer for a device is kept for the life of a process."""
    del device
    monkeypatch.setattr(launch, "_launch_obstacle", launch._launch_obstacle.__wrapped__)


def test_the_smallest_kernel_runs(device: torch.device) -> None:
    assert launch._launch_obstacle(device) is None


class Failing:
    """A kernel that cannot be launched."""

    def __getitem__(self, grid: tuple[int, ...]) -> Failing:
        return self

    def __call__(self, *args: object, **given: object) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC\nand so on")


def test_what_stands_in_the_way_is_named(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "doubled", Failing())
    assert launch._launch_obstacle(device) == (
        "Triton cannot launch here (Failed to find C compiler. Please specify via CC)"
    )


def test_a_kernel_that_does_nothing_is_no_good(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failing, "__call__", lambda *args, **given: None)
    monkeypatch.setattr(probe, "doubled", Failing())
    assert "wrong results" in str(launch._launch_obstacle(device))


def test_other_devices_have_no_triton() -> None:
    assert "run on CUDA devices" in str(launch.triton_obstacle(torch.device("cpu")))

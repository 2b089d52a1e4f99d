"""Tests that need an NVIDIA GPU. Elsewhere they are skipped, and say so."""

from __future__ import annotations

import pytest
import torch

NO_GPU = "needs an NVIDIA GPU that torch can use"


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The first GPU."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    pytest.importorskip("triton", reason="triton is not installed")
    return torch.device("cuda", 0)

"""Triton kernels are tested on the GPU where there is one, and in Triton's interpreter elsewhere."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run: the GPU, or the CPU when they are interpreted."""
    pytest.importorskip("triton", reason="triton is not installed (the dev extra has it on Linux)")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

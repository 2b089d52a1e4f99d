"""RMS norm and SwiGLU by Triton equal torch."""

from __future__ import annotations

import pytest
import torch
from tests.unit.ops.cuda.tolerances import assert_near

from telechat.ops.cpu.norm import rms_norm_reference
from telechat.ops.cpu.swiglu import swiglu_reference
from telechat.ops.cuda.rows import norm_obstacle, rms_norm, swiglu, swiglu_obstacle

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [48, 256, 5120])
@pytest.mark.parametrize("adds", [False, True], ids=["plain", "residual"])
def test_norm_equals_the_reference(
    device: torch.device, width: int, dtype: torch.dtype, *, adds: bool
) -> None:
    torch.manual_seed(width)
    x = torch.randn(3, width, device=device).mul(3).to(dtype)
    weight = torch.randn(width, device=device).to(dtype)
    add = torch.randn(3, width, device=device).to(dtype) if adds else None
    expected_x = x.clone()
    expected = rms_norm_reference(expected_x, weight, 1e-5, add=add)
    assert norm_obstacle(x, weight, add) is None
    assert_near(rms_norm(x, weight, 1e-5, add=add), expected)
    assert_near(x, expected_x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [40, 3000])
def test_swiglu_of_two_halves(device: torch.device, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    both = torch.randn(3, 2 * width, device=device).mul(2).to(dtype)
    gate, up = both.chunk(2, dim=1)
    assert swiglu_obstacle(gate, up) is None
    assert_near(swiglu(gate, up), swiglu_reference(gate, up))


def test_obstacles_are_named(device: torch.device) -> None:
    x = torch.zeros(2, 64, device=device)
    assert "dtypes" in str(norm_obstacle(x, torch.zeros(64, device=device).half()))
    assert "contiguous" in str(norm_obstacle(x.T, torch.zeros(2, device=device)))
    assert "shapes" in str(norm_obstacle(x, torch.zeros(32, device=device)))
    assert "not float64" in str(swiglu_obstacle(x.double(), x.double()))
    assert "differ" in str(swiglu_obstacle(x, x[:1]))

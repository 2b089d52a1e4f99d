"""How far a kernel's result may be from its reference."""

from __future__ import annotations

import torch
from torch import Tensor

# fp32: sums in another order. Half precision: rounded once to the output's dtype, and the interpreter cuts
# bf16 off where the GPU rounds; so one unit in the last place (2**-7 of bf16, 2**-10 of fp16) at each of the
# two or three places where intermediate results are rounded.
RELATIVE = {torch.float32: 2e-5, torch.bfloat16: 2.5e-2, torch.float16: 4e-3}


def assert_near(actual: Tensor, expected: Tensor, *, dtype: torch.dtype | None = None) -> None:
    """Each element within the tolerance of `dtype` (by default the expected one's)."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    limit = RELATIVE[dtype or expected.dtype]
    scale = float(expected.float().abs().max())
    torch.testing.assert_close(actual.float(), expected.float(), rtol=limit, atol=limit * scale)

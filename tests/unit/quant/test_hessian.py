"""The sum of products of calibration inputs: the same in pieces, in bf16 and by the kernels."""

from __future__ import annotations

import pytest
import torch

from telechat.errors import ConfigError
from telechat.quant import hessian
from telechat.quant.hessian import Hessian


def inputs(tokens: int, columns: int) -> torch.Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0)) + 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [96, 1056])
def test_pieces_are_added_up(dtype: torch.dtype, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian, "_TOKENS_AT_ONCE", 300)
    x = inputs(700, columns).to(dtype)
    seen = Hessian(columns)
    for piece in x[:650].split(97):
        seen.add(piece[None])
    early = seen.matrix.clone()
    seen.add(x[650:])
    assert seen.num_tokens == 700
    for found, tokens in ((early, x[:650]), (seen.matrix, x)):
        exact = tokens.double().t() @ tokens.double()
        assert float((found - exact).norm() / exact.norm()) < 1e-6


def test_numbers_that_are_not_finite() -> None:
    seen = Hessian(64)
    seen.add(torch.full((2, 64), float("inf")))
    with pytest.raises(ConfigError, match="not finite"):
        _ = seen.matrix

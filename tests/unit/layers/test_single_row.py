"""Single rows through torch's matrix-vector product are what the layers give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from telechat.layers.single_row import SingleRowForward, bind_single_rows, unbind_single_rows


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 96), (1, 1, 96), (96,), (3, 96), (2, 2, 96), (0, 96)])
def test_rows_are_what_the_layer_gives(shape: tuple[int, ...], *, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 50, bias=bias).bfloat16()
    x = torch.randn(shape).bfloat16()
    expected = layer(x)
    [bound] = bind_single_rows(layer)
    out = layer(x)
    assert out.shape == expected.shape and out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=2**-7, atol=2**-9)
    if x.numel() != 96:
        assert torch.equal(out, expected)
    unbind_single_rows([bound])
    assert torch.equal(layer(x), expected)


def test_only_layers_that_gain_are_bound() -> None:
    other = type("Other", (nn.Linear,), {})(8, 8).bfloat16()
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8).half(), other)
    assert bind_single_rows(model) == [model[1]]
    assert isinstance(model[1].forward, SingleRowForward)


def test_hooks_still_run() -> None:
    layer = nn.Linear(8, 8).bfloat16()
    bind_single_rows(layer)
    layer.register_forward_hook(lambda _module, _args, out: out * 0)
    assert not layer(torch.ones(1, 8).bfloat16()).any()

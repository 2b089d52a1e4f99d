"""What we pack is what GPTQModel unpacks, and what it packs is what we unpack, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from telechat.checkpoint.gptq import V1, V2
from telechat.quant.gptq import GptqSettings, dequantize, quantise_weight, quantize_linear
from telechat.quant.hessian import Hessian

pytestmark = pytest.mark.oracle

N, K, GROUP = 64, 128, 32


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(N, K, generator=generator), torch.randn(300, K, generator=generator)


def layer(bits: int, *, sym: bool, act_order: bool) -> Any:
    """GPTQModel's own layer, empty."""
    module = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch", reason="see tools/oracles.py")
    return module.TorchLinear(
        bits=bits, group_size=GROUP, sym=sym, desc_act=act_order, in_features=K, out_features=N
    )


def filled(packed: dict[str, Tensor], checkpoint_format: str, bits: int, **settings: bool) -> Any:
    """Its layer with our tensors, read as its loader reads them."""
    theirs = layer(bits, **settings)
    for name, tensor in packed.items():
        assert theirs.get_buffer(name).shape == tensor.shape, name
        getattr(theirs, name).copy_(tensor)
    if checkpoint_format == V1:
        from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

        convert_gptq_v1_to_v2_format_module(theirs, bits=bits, pack_dtype=torch.int32)
    return theirs


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_it_unpacks_ours(bits: int, sym: bool, act_order: bool) -> None:
    weight, inputs = problem()
    packed = quantize_linear(weight, inputs, bits, GROUP, sym, act_order)
    theirs = filled(packed, V1, bits, sym=sym, act_order=act_order)
    assert torch.equal(theirs.dequantize_weight().t(), dequantize(packed, bits).half())


def test_it_unpacks_zero_points_of_the_second_format() -> None:
    """Where a group is all positive, its zero point is 0, which only this format can store."""
    weight, inputs = problem()
    weight[:, :GROUP] = weight[:, :GROUP].abs() + 0.1
    hessian = Hessian(K)
    hessian.add(inputs)
    settings = GptqSettings(bits=4, group_size=GROUP, sym=False, least_zero=0)
    codes = quantise_weight(weight, hessian, settings).codes
    assert int(codes.zeros_GN.min()) == 0
    packed = codes.pack(4, V2)
    theirs = filled(packed, V2, 4, sym=False, act_order=False)
    assert torch.equal(theirs.dequantize_weight().t(), dequantize(packed, 4, V2).half())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_we_unpack_its_packing(bits: int) -> None:
    """Its packer is given our integers' meaning, scales and zero points."""
    weight, inputs = problem()
    ours = quantize_linear(weight, inputs, bits, GROUP, True, False)
    plain = nn.Linear(K, N, bias=False)
    plain.weight.data = dequantize(ours, bits)
    theirs = layer(bits, sym=True, act_order=False)
    zeros = torch.full((N, K // GROUP), float(2 ** (bits - 1)))
    theirs.pack(plain, scales=ours["scales"].t().float(), zeros=zeros, g_idx=ours["g_idx"])
    names = ("qweight", "qzeros", "scales", "g_idx")
    packed = {name: theirs.get_buffer(name) for name in names}
    assert torch.equal(packed["qweight"], ours["qweight"])
    assert torch.equal(dequantize(packed, bits, V2), dequantize(ours, bits))

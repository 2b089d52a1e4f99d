"""GPTQ on single layers: packing by the worked examples of the format, and what the rounding promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from telechat.checkpoint.gptq import Codes, pack_words, pack_zeros, unpack_words, unpack_zeros
from telechat.errors import CheckpointError, ConfigError
from telechat.quant.gptq import GptqSettings, dequantize, quantise_weight, quantize_linear
from telechat.quant.grid import GridRule
from telechat.quant.hessian import Hessian, inverse_factor


def layer(n: int = 32, k: int = 128, tokens: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and inputs that depend on one another."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(k, k, generator=generator) * 0.3 + torch.eye(k)
    return torch.randn(n, k, generator=generator), torch.randn(tokens, k, generator=generator) @ mixing


def objective(weight: Tensor, inputs: Tensor, packed: dict[str, Tensor], bits: int) -> float:
    return float(((dequantize(packed, bits) - weight) @ inputs.t()).square().sum())


def test_words() -> None:
    codes = torch.tensor([[1], [2], [3], [4], [5], [6], [7], [8]], dtype=torch.uint8)
    assert pack_words(codes, 4).tolist() == [[-2023406815]]
    assert pack_words(torch.tensor([[1], [2], [3], [128]], dtype=torch.uint8), 8).tolist() == [[-2147286527]]
    for bits in (2, 4, 8):
        values = torch.randint(2**bits, (64, 3), generator=torch.Generator().manual_seed(bits))
        assert torch.equal(unpack_words(pack_words(values, bits), bits).long(), values)


@pytest.mark.parametrize(
    ("bits", "zero", "v1", "v2"),
    [
        (4, 8, 2004318071, -2004318072),
        (8, 128, 2139062143, -2139062144),
        (2, 2, 0x55555555, -1431655766),
    ],
)
def test_zero_points(bits: int, zero: int, v1: int, v2: int) -> None:
    zeros = torch.full((1, 32 // bits), zero, dtype=torch.uint8)
    assert pack_zeros(zeros, bits, "gptq").tolist() == [[v1]]
    assert pack_zeros(zeros, bits, "gptq_v2").tolist() == [[v2]]
    assert torch.equal(unpack_zeros(torch.tensor([[v1]], dtype=torch.int32), bits), zeros)


def test_a_borrowed_zero_point() -> None:
    word = torch.tensor([[0x7777776F]], dtype=torch.int32)
    assert unpack_zeros(word, 4).tolist() == [[0, 8, 8, 8, 8, 8, 8, 8]]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_half_the_error_of_rounding(bits: int, sym: bool, act_order: bool) -> None:
    weight, inputs = layer()
    packed = quantize_linear(weight, inputs, bits, 32, sym, act_order)
    assert packed["qweight"].shape == (128 * bits // 32, 32) and packed["qzeros"].shape == (4, bits)
    assert packed["scales"].dtype == torch.float16 and packed["g_idx"].dtype == torch.int32
    plain = GridRule(bits, sym, search=False)
    grouped = weight.view(-1, 32)
    scale, zero = plain.choose(grouped)
    rounded = (plain.quantise(grouped, scale[:, None], zero[:, None]) - zero[:, None]) * scale[:, None]
    nearest = float(((rounded.view_as(weight) - weight) @ inputs.t()).square().sum())
    assert objective(weight, inputs, packed, bits) < 0.5 * nearest


@pytest.mark.parametrize("group_size", [16, 48, 96, 192, -1])
def test_groups_of_any_size(group_size: int) -> None:
    """Also those that do not go evenly into the columns whose errors travel together."""
    weight, inputs = layer(k=192)
    packed = quantize_linear(weight, inputs, 4, group_size, True, False)
    size = 192 if group_size == -1 else group_size
    assert packed["g_idx"].tolist() == [i // size for i in range(192)]
    # One at a time, the textbook's way, with the grids that were chosen.
    settings = GptqSettings(bits=4, group_size=group_size)
    hessian = Hessian(192)
    hessian.add(inputs)
    U, _ = inverse_factor(hessian.matrix, settings.damp)
    codes = Codes.unpack(packed, 4)
    left, expected = weight.clone(), torch.empty(32, 192)
    for j in range(192):
        scale = codes.scales_GN[codes.groups_K[j]].float()
        code = ((left[:, j] / scale).round() + 8).clamp(0, 15)
        expected[:, j] = (code - 8) * scale
        left[:, j:] -= ((left[:, j] - expected[:, j]) / U[j, j])[:, None] * U[j, j:]
    same = (dequantize(packed, 4) - expected).abs() < 1e-6
    assert same.float().mean() > 0.99  # the sums are added up in another order


def test_static_groups_keep_neighbours_together() -> None:
    weight, inputs = layer()
    inputs[:, 70:] *= 5
    static = quantize_linear(weight, inputs, 4, 32, True, True, static_groups=True)
    assert static["g_idx"].tolist() == [i // 32 for i in range(128)]
    moving = quantize_linear(weight, inputs, 4, 32, True, True)
    assert moving["g_idx"].tolist() != static["g_idx"].tolist()
    assert (
        objective(weight, inputs, static, 4)
        < objective(weight, inputs, quantize_linear(weight, inputs, 4, 32, True, False), 4) * 1.1
    )


def test_the_reported_loss_is_the_objective() -> None:
    weight, inputs = layer()
    hessian = Hessian(128)
    for piece in inputs.split(33):
        hessian.add(piece)
    assert torch.allclose(hessian.matrix, inputs.t() @ inputs, rtol=1e-4, atol=1e-2)
    done = quantise_weight(weight, hessian, GptqSettings(damp=1e-6, group_size=32))
    error = done.codes.dequantise() - weight
    assert done.loss == pytest.approx(float((error @ inputs.t()).square().sum()), rel=1e-3)


def test_inverse_factor() -> None:
    _, inputs = layer()
    matrix = inputs.t() @ inputs
    U, damp = inverse_factor(matrix, 0.01)
    damped = matrix + 0.01 * matrix.diagonal().mean() * torch.eye(128)
    assert damp == 0.01 and torch.equal(U, U.triu())
    assert torch.allclose(U.t() @ U @ damped, torch.eye(128), atol=1e-3)


def test_more_damping_where_it_is_needed() -> None:
    few = torch.ones(3, 64) * 1e4
    _, damp = inverse_factor(few.t() @ few, 1e-12)
    assert damp > 1e-12


def test_inputs_never_used_and_no_inputs_at_all() -> None:
    weight, inputs = layer()
    inputs[:, 5] = 0
    packed = quantize_linear(weight, inputs, 4, 32, True, False)
    assert bool((dequantize(packed, 4)[:, 5] == 0).all())
    # Without tokens nothing is known, and nothing may be thrown away.
    untouched = quantise_weight(weight, Hessian(128), GptqSettings(group_size=32, bits=8))
    assert torch.allclose(untouched.codes.dequantise(), weight, atol=0.02)


def test_empty_and_one_sided_groups() -> None:
    weight, inputs = layer()
    weight[0] = 0
    weight[1] = weight[1].abs() + 1
    weight[2] = -weight[2].abs() - 1
    for sym in (True, False):
        packed = quantize_linear(weight, inputs, 8, 32, sym, False)
        assert torch.allclose(dequantize(packed, 8), weight, atol=0.1)
        assert bool((dequantize(packed, 8)[0] == 0).all())
        assert int(unpack_zeros(packed["qzeros"], 8).min()) >= 1


def test_refusals() -> None:
    weight, inputs = layer()
    with pytest.raises(ConfigError, match="bits is 3; three bits"):
        quantize_linear(weight, inputs, 3, 32, True, False)
    with pytest.raises(ConfigError, match="bits is 5"):
        quantize_linear(weight, inputs, 5, 32, True, False)
    with pytest.raises(ConfigError, match="128 inputs do not divide into groups of 48"):
        quantize_linear(weight, inputs, 4, 48, True, False)
    with pytest.raises(ConfigError, match="12 outputs do not fill words of 8 codes"):
        quantize_linear(weight[:12], inputs, 4, 32, True, False)
    with pytest.raises(ConfigError, match="group_size is 0"):
        quantize_linear(weight, inputs, 4, 0, True, False)
    with pytest.raises(ConfigError, match="damp is 1"):
        quantize_linear(weight, inputs, 4, 32, True, False, damp=1.0)
    with pytest.raises(ConfigError, match="inputs have 64 columns, the weight 128"):
        quantize_linear(weight, inputs[:, :64], 4, 32, True, False)
    with pytest.raises(ConfigError, match="not finite"):
        quantize_linear(weight, inputs / 0, 4, 32, True, False)
    with pytest.raises(ConfigError, match="fp16 cannot hold their scale"):
        quantize_linear(weight * 1e7, inputs, 4, 32, True, False)
    weight[3, 4] = float("nan")
    with pytest.raises(ConfigError, match="not finite"):
        quantize_linear(weight, inputs, 4, 32, True, False)


def test_tensors_that_do_not_belong_together() -> None:
    weight, inputs = layer()
    packed = quantize_linear(weight, inputs, 4, 32, True, False)
    without = {key: value for key, value in packed.items() if key != "g_idx"}
    assert torch.equal(dequantize(without, 4), dequantize(packed, 4))
    with pytest.raises(CheckpointError, match="do not belong together at 8 bits"):
        dequantize(packed, 8)
    with pytest.raises(CheckpointError, match="lacks scales"):
        dequantize({key: value for key, value in packed.items() if key != "scales"}, 4)
    with pytest.raises(CheckpointError, match="numbers from 0 to 3"):
        dequantize({**packed, "g_idx": packed["g_idx"] + 1}, 4)
    with pytest.raises(ConfigError, match="checkpoint_format is 'marlin'"):
        dequantize(packed, 4, "marlin")

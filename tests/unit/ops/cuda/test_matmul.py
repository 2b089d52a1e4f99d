"""Linear layers by Triton equal torch, with weights of every kind and for few and many rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.unit.ops.cuda.tolerances import assert_near
from torch import Tensor

from telechat.ops.cuda import matmul

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_integers(
    n: int, k: int, bits: int, group_size: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed weights, scales, and the weights that they stand for, fp32."""
    least, most = (-8, 7) if bits == 4 else (-127, 127)
    integers = torch.randint(least, most + 1, (n, k), dtype=torch.int8)
    integers[0, :2] = torch.tensor([least, most])
    scales = torch.rand(n, k // group_size).add(0.1).half()
    weights = integers.float() * scales.float().repeat_interleave(group_size, dim=1)
    packed = integers
    if bits == 4:
        low, high = (integers + 8).to(torch.uint8).view(n, k // 2, 2).unbind(2)
        packed = low | (high << 4)
    return packed.to(device), scales.to(device), weights.to(device)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
def test_one_row(device: torch.device, dtype: torch.dtype, *, has_bias: bool) -> None:
    n, k = 37, 600
    x, weight = (torch.randn(*shape, device=device).to(dtype) for shape in ((1, k), (n, k)))
    bias = torch.randn(n, device=device).mul(20).to(dtype) if has_bias else None
    expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    assert matmul.linear_obstacle(x, weight) is None
    assert_near(matmul.linear(x, weight, bias), expected.to(dtype))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("num_rows", [1, 3, 40])
def test_integer_weights(device: torch.device, num_rows: int, group_size: int, bits: int) -> None:
    n, k = 48, 384
    packed, scales, weights = random_integers(n, k, bits, group_size, device)
    x, bias = torch.randn(num_rows, k, device=device), torch.randn(n, device=device)
    assert matmul.quantized_obstacle(x, packed, scales, bits=bits, group_size=group_size) is None
    actual = matmul.quantized_linear(x, packed, scales, bits=bits, group_size=group_size, bias=bias)
    assert_near(actual, F.linear(x, weights, bias))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("num_rows", [1, 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_integer_weights_in_half_precision(
    device: torch.device, dtype: torch.dtype, num_rows: int, bits: int
) -> None:
    packed, scales, weights = random_integers(33, 256, bits, 128, device)
    x = torch.randn(num_rows, 256, device=device).to(dtype)
    bias = torch.randn(33, device=device).mul(20).to(dtype)
    actual = matmul.quantized_linear(x, packed, scales, bits=bits, group_size=128, bias=bias)
    assert_near(actual, (F.linear(x.float(), weights) + bias.float()).to(dtype))


@pytest.mark.parametrize("bits", [4, 8])
def test_many_rows_unpack_first(device: torch.device, bits: int) -> None:
    packed, scales, weights = random_integers(20, 128, bits, 64, device)
    unpacked = matmul.unpack(packed, scales, bits=bits, group_size=64, dtype=torch.float32)
    assert torch.equal(unpacked, weights)
    x = torch.randn(matmul.MANY_ROWS, 128, device=device)
    actual = matmul.quantized_linear(x, packed, scales, bits=bits, group_size=64)
    assert_near(actual, F.linear(x, weights))


def test_obstacles_are_named(device: torch.device) -> None:
    packed, scales, _ = random_integers(8, 128, 4, 64, device)
    x = torch.randn(1, 128, device=device)

    def obstacle(x: Tensor = x, packed: Tensor = packed, bits: int = 4, group_size: int = 64) -> str:
        return str(matmul.quantized_obstacle(x, packed, scales, bits=bits, group_size=group_size))

    assert obstacle() == "None"
    assert "3 bits" in obstacle(bits=3)
    assert "groups of 16" in obstacle(group_size=16)
    assert "stored as" in obstacle(bits=8)
    assert "do not fit 64 inputs" in obstacle(x=x[:, :64])
    assert "contiguous" in obstacle(packed=packed.T.contiguous().T)
    assert "not float64" in obstacle(x=x.double())
    assert "by rows" in str(matmul.linear_obstacle(x, torch.zeros(8, 64)))

"""bf16 in 12 bits: not a bit is lost, and products are those of plain bf16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from telechat.ops.cpu.context import Context
from telechat.ops.cpu.matmul import matmul
from telechat.ops.cpu.weights import PackedWeight

# Below, at and past what one product takes in bf16 tiles, and the form for many rows.
ROWS = [1, 2, 8, 13, 16, 17, 31, 32, 33, 50, 81, 530]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_rows(weight: PackedWeight) -> Tensor:
    return weight.take_rows(torch.arange(weight.rows))


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int16), other.view(torch.int16))


@pytest.mark.parametrize("shape", [(2000, 32), (40, 100), (96, 640), (1096, 192), (24, 4096)], ids=str)
def test_products_are_those_of_bfloat16(context: Context, shape: tuple[int, int]) -> None:
    values = normal(*shape).bfloat16()
    some = values.view(-1)[::397]
    some.copy_(torch.tensor(2.0).pow(-20 - torch.arange(len(some)) % 40))
    plain = PackedWeight.pack(context, values, "bfloat16")
    weight = PackedWeight.pack(context, values, "compact")
    assert weight.weight_format == "compact"
    assert same_bits(all_rows(weight), values)
    for M in ROWS:
        x = normal(M, shape[1], seed=M)
        assert torch.equal(matmul(context, x, weight), matmul(context, x, plain)), M


def test_three_quarters_of_the_memory(any_context: Context) -> None:
    values = normal(512, 1024).bfloat16()
    plain = PackedWeight.pack(any_context, values, "bfloat16")
    weight = PackedWeight.pack(any_context, values, "compact")
    # One patch of 8 bytes in some thousands of values, and 4 and 8 bytes for each panel.
    assert 0.75 < weight.num_bytes / plain.num_bytes < 0.755


@pytest.mark.parametrize("place", [0, 31, 32, 511, 512, 1023, -1])
def test_rare_values_anywhere(any_context: Context, place: int) -> None:
    values = normal(16, 2048).bfloat16()
    values.view(-1)[place] = -float("inf")
    values.view(-1)[place // 2 + 7] = float("nan")
    weight = PackedWeight.pack(any_context, values, "compact")
    assert weight.struct.num_patches >= 2
    assert same_bits(all_rows(weight), values)


def test_too_many_exponents_are_left_as_they_are(any_context: Context) -> None:
    values = torch.tensor(2.0).pow(torch.arange(64 * 64) % 100 - 50).view(64, 64).bfloat16()
    weight = PackedWeight.pack(any_context, values, "compact")
    assert weight.weight_format == "bfloat16"
    assert same_bits(all_rows(weight), values)


def test_zeros_and_one_value(any_context: Context) -> None:
    for values in (torch.zeros(20, 40), torch.full((20, 40), -0.0), torch.full((1, 1), 3.5)):
        assert same_bits(all_rows(PackedWeight.pack(any_context, values, "compact")), values.bfloat16())

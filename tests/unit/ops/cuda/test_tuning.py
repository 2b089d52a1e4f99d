"""The tile of a product is tried out once for each size, and decides nothing but the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.unit.ops.cuda.tolerances import assert_near
from torch import Tensor

from telechat.ops.cpu.swiglu import swiglu_reference
from telechat.ops.cuda import matmul, tuning
from telechat.ops.cuda.matmul import Tile
from telechat.ops.cuda.tuning import Products
from telechat.ops.quantized import WeightScheme, round_to_nearest

TILES = (Tile(16, 256, 4), Tile(8, 64, 4), Tile(4, 128, 4))


class Clock:
    """Says that the second tile tried is the fastest."""

    def __init__(self) -> None:
        self.num_runs = 0

    def __call__(self, run: Callable[[], Tensor]) -> float:
        run()
        self.num_runs += 1
        return 1.0 if self.num_runs % len(TILES) == 2 else 2.0


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Tile | None]:
    """The tiles of products, in order."""
    tiles: list[Tile | None] = []
    for name in ("linear", "quantized_linear"):
        product = getattr(matmul, name)

        def watched(*args: Tensor, product: Callable[..., Tensor] = product, **given: object) -> Tensor:
            tile = given["tile"]
            assert tile is None or isinstance(tile, Tile)
            tiles.append(tile)
            return product(*args, **given)

        monkeypatch.setattr(tuning, name, watched)
    monkeypatch.setattr(tuning, "tiles_for", lambda bits: TILES)
    return tiles


def test_the_fastest_is_kept_for_each_size(device: torch.device, used: list[Tile | None]) -> None:
    clock = Clock()
    products = Products(clock)
    weight, other = torch.randn(24, 96, device=device), torch.randn(24, 96, device=device)
    first, second = (products.bind_linear(one, None) for one in (weight, other))
    assert clock.num_runs == len(TILES) and used == list(TILES)
    used.clear()
    x = torch.randn(1, 96, device=device)
    assert_near(first(x), F.linear(x, weight))
    assert_near(second(x), F.linear(x, other))
    assert used == [TILES[1]] * 2
    products.bind_linear(weight, None, gated=True)
    products.bind_linear(weight[:16], None)
    stored = round_to_nearest(weight, WeightScheme(4, 32))
    products.bind_quantized(stored, None, dtype=torch.float32)
    products.bind_quantized(stored, None, dtype=torch.float32)
    assert clock.num_runs == 4 * len(TILES)


def test_without_trying_the_first_is_taken(device: torch.device, used: list[Tile | None]) -> None:
    weight = torch.randn(24, 96, device=device)
    Products(None).bind_linear(weight, None)(torch.randn(1, 96, device=device))
    assert used == [TILES[0]]


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("bits", [None, 4, 8], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gate_and_up_in_one_product(
    device: torch.device, dtype: torch.dtype, bits: int | None, num_rows: int
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(2 * 21, 128).to(dtype), torch.randn(2 * 21).to(dtype)
    x = torch.randn(num_rows, 128, device=device).to(dtype)
    products = Products(None)
    if bits is None:
        meant = weight.to(device)
        product = products.bind_linear(meant, bias.to(device), gated=True)
    else:
        stored = round_to_nearest(weight.to(device), WeightScheme(bits, 64))
        meant = stored.dequantise()
        product = products.bind_quantized(stored, bias.to(device), gated=True, dtype=dtype)
    both = (F.linear(x.float(), meant.float()) + bias.to(device).float()).to(dtype)
    assert_near(product(x), swiglu_reference(*both.chunk(2, dim=1)))

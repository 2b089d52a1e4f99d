"""Quantised weights: the stored form exactly, rounding within its bounds, and every product against one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from telechat.device import CPU
from telechat.errors import ConfigError, DeviceError
from telechat.ops import quantized_products
from telechat.ops.cpu import library
from telechat.ops.cpu.context import shared_context
from telechat.ops.cpu.weights import quantise_reference
from telechat.ops.quantized import (
    GROUP_SIZES,
    QuantizedWeight,
    WeightScheme,
    pack_integers,
    round_to_nearest,
    unpack_integers,
)
from telechat.ops.quantized_products import choose_product, pack_for_kernels

SCHEMES = [WeightScheme(bits, group_size) for bits in (8, 4) for group_size in GROUP_SIZES]
FORMS = ["dequantise", "c", "torch int4", "torch int8 with one scale per output"]


def form_takes(form: str, scheme: WeightScheme) -> bool:
    return form in ("dequantise", "c") or f"int{scheme.bits}" in form


def random_weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def test_two_integers_in_a_byte_the_earlier_one_low() -> None:
    q = torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)
    stored = pack_integers(q, 4)
    assert stored.tolist() == [[0x00 | 15 << 4, 8 | 7 << 4]]
    assert torch.equal(unpack_integers(stored, 4), q)


@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31))
def test_integers_come_back(bits: int, rows: int, half: int, seed: int) -> None:
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    q = torch.randint(
        low, high + 1, (rows, 2 * half), generator=torch.Generator().manual_seed(seed), dtype=torch.int8
    )
    assert torch.equal(unpack_integers(pack_integers(q, bits), bits), q)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rounding_is_within_half_a_step(scheme: WeightScheme) -> None:
    weight = random_weight(70, 256)
    stored = round_to_nearest(weight, scheme)
    error = (stored.dequantise() - weight).abs().view(70, -1, scheme.group_size)
    step = stored.scales.float().abs()[..., None]
    # Half a step, and what the fp16 scale differs from the exact one at the outermost integer; with 4 bits
    # a value at the far end may lie up to a whole step outside.
    reach = 8 if scheme.bits == 4 else 127
    slack = 0.5 + reach * 2**-11
    is_cut = (weight.view(70, -1, scheme.group_size) / stored.scales.float()[..., None]) > 7.5
    assert ((error <= slack * step) | (is_cut & (error <= 1.01 * step) & (scheme.bits == 4))).all()
    if scheme.bits == 4:
        assert (stored.integers().view(70, -1, scheme.group_size).amin(-1) == -8).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounds_as_the_kernels_do(scheme: WeightScheme, dtype: torch.dtype) -> None:
    weight = random_weight(33, 256).to(dtype)
    weight[3], weight[4, :130] = 0, 1e-9
    stored = round_to_nearest(weight, scheme)
    q, scales = quantise_reference(weight, "int4" if scheme.bits == 4 else "int8", scheme.group_size)
    assert torch.equal(stored.integers(), q)
    assert torch.equal(stored.scales, scales)


def test_rows_are_rounded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scheme = random_weight(70, 64), WeightScheme(4, 32)
    whole = round_to_nearest(weight, scheme)
    monkeypatch.setattr("telechat.ops.quantized._ROUNDED_AT_ONCE", 64 * 9)
    pieces = round_to_nearest(weight, scheme)
    assert torch.equal(whole.qweight, pieces.qweight) and torch.equal(whole.scales, pieces.scales)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(value: float) -> None:
    weight = random_weight(4, 64)
    weight[2, 40] = value
    with pytest.raises(ConfigError, match="not finite"):
        round_to_nearest(weight, WeightScheme(8, 32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightScheme(3, 32), "bits is 3"),
        (lambda: WeightScheme(4, 48), "group_size is 48; it must be one of 32, 64, 128"),
        (lambda: WeightScheme.named("int5"), "'int5'; choose int8 or int4"),
        (lambda: WeightScheme.named("int4", 0), "group_size is 0"),
    ],
)
def test_schemes_that_do_not_exist(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_kernels_hold_the_very_weights(scheme: WeightScheme) -> None:
    if library.obstacle():
        pytest.skip(str(library.obstacle()))
    stored = round_to_nearest(random_weight(40, 256), scheme)
    packed = pack_for_kernels(shared_context(1), stored)
    assert torch.equal(packed.unpack(), stored.dequantise())


def test_scheme() -> None:
    assert WeightScheme.named("int4") == WeightScheme(4, 32)
    assert WeightScheme.named("int8", 128).bits_per_weight == 8.125
    assert WeightScheme(4, 64).obstacle(96) and WeightScheme(4, 64).fitting_group_sizes(96) == [32]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_parts_of_a_weight(scheme: WeightScheme) -> None:
    stored = round_to_nearest(random_weight(8, 512), scheme)
    whole = stored.dequantise()
    assert torch.equal(stored.take_rows(2, 5).dequantise(), whole[2:5])
    assert torch.equal(stored.take_columns(128, 384).dequantise(), whole[:, 128:384])


def form_or_skip(weight: QuantizedWeight, name: str):  # type: ignore[no-untyped-def]
    for form in quantized_products._FAST:
        if form.name == name and form.obstacle(weight.scheme, weight.rows, CPU):
            pytest.skip(str(form.obstacle(weight.scheme, weight.rows, CPU)))
    return choose_product(weight, name).product


@pytest.mark.parametrize(
    ("scheme", "form"),
    [(scheme, form) for scheme in SCHEMES for form in FORMS if form_takes(form, scheme)],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 3, 17, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_equal_the_reference(scheme: WeightScheme, form: str, rows: int, dtype: torch.dtype) -> None:
    """Tolerances: the C kernels round activations to 8 bits, bf16 has 8, so a product is off by some 2^-8 of
    its terms' spread; int8 with one scale per output rounds the weights again, to steps of max/127."""
    weight = round_to_nearest(random_weight(192, 256), scheme)
    product = form_or_skip(weight, form)
    x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    out = product(x)
    expected = x.double() @ weight.dequantise().double().T
    assert out.dtype == dtype and out.shape == (rows, 192)
    spread = expected.std()
    exact = form == "dequantise" and dtype == torch.float32
    tolerance = 1e-5 if exact else 0.06 if "one scale" in form else 0.03
    assert ((out.double() - expected).abs().max() / spread) < tolerance
    assert ((out.double() - expected).std() / spread) < tolerance / 4


@pytest.mark.parametrize("form", FORMS[2:])
def test_few_rows_do_not_depend_on_their_neighbours(form: str) -> None:
    scheme = WeightScheme(4 if "int4" in form else 8, 32)
    product = form_or_skip(round_to_nearest(random_weight(128, 256), scheme), form)
    x = torch.randn(9, 256)
    together = product(x)
    assert torch.equal(together, torch.cat([product(row[None]) for row in x]))


@pytest.mark.parametrize("rows", [3, 80])
def test_products_in_pieces(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(rows, 256)
    for scheme in (WeightScheme(4, 64), WeightScheme(8, 64)):
        weight = round_to_nearest(random_weight(320, 256), scheme)
        form = "torch int4" if scheme.bits == 4 else FORMS[-1]
        whole = form_or_skip(weight, form)(x)
        for name in ("_DEQUANTISED_AT_ONCE", "_MULTIPLIED_AT_ONCE", "_INT4_A_THREAD"):
            monkeypatch.setattr(quantized_products, name, 256 * 128)
        product = choose_product(weight, form).product
        assert len(getattr(product, "pieces", "")) != 1, "one piece tests nothing"
        assert torch.allclose(product(x), whole, atol=0.02)
        assert torch.allclose(choose_product(weight, "dequantise").product(x), whole, atol=0.05)
        monkeypatch.undo()


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "obstacle", lambda: "there is no compiler")
    small = round_to_nearest(random_weight(24, 64), WeightScheme(4, 32))
    choice = choose_product(small)
    assert choice.name == "dequantise"
    assert "24 outputs are no multiple of" in choice.reason and "there is no compiler" in choice.reason
    with pytest.raises(DeviceError, match="24 outputs"):
        choose_product(small, "torch int4")
    with pytest.raises(DeviceError, match="Unknown product 'marlin'"):
        choose_product(small, "marlin")
    with pytest.raises(DeviceError, match="triton"):
        choose_product(small, "triton")

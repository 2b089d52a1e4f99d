"""Rotary tables: the length rule, rounding, growth, rows of different length."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from telechat.errors import ConfigError
from telechat.layers.rotary import RopeSettings, RotaryTables, rotate


@pytest.mark.parametrize(
    ("base_length", "training_length", "length", "alpha"),
    [
        (8192, 8192, 1, 1),
        (8192, 8192, 8192, 1),
        (8192, 8192, 8193, 3),
        (8192, 8192, 16384, 3),
        (8192, 8192, 16385, 7),
        (8192, 8192, 40000, 15),
        (4096, 8192, 1, 3),  # the 7B as released
        (4096, 8192, 8193, 7),
        (8192, 32768, 5, 7),  # the 32K releases
    ],
)
def test_length_rule(base_length: int, training_length: int, length: int, alpha: int) -> None:
    settings = RopeSettings(base_length=base_length, training_length=training_length)
    found, mscale = settings.stretch(length)
    assert found == alpha
    excess = max(length / training_length, 1)
    assert mscale == pytest.approx(0.1 * math.log(excess) + 1)


@pytest.mark.parametrize("scheme", ["none", "ntk-static", "pi"])
def test_static_schemes_do_not_stretch(scheme: Any) -> None:
    assert RopeSettings(scheme=scheme, base_length=16, training_length=16).stretch(1000) == (1, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "yarn"}, "rope scheme 'yarn' is unknown"),
        ({"base": 0}, "rope base is 0"),
        ({"factor": -1.0}, "rope factor is -1.0"),
        ({"base_length": "4k"}, "rope base_length is '4k'"),
        ({"training_length": float("inf")}, "rope training_length is inf"),
        ({"table_dtype": "bfloat16"}, "rope table_dtype is 'bfloat16'"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        RopeSettings(**changes)


def test_tables_are_rounded_before_they_are_scaled() -> None:
    settings = RopeSettings(base_length=8, training_length=8)
    cos, _ = RotaryTables(settings, 4).rows(torch.arange(20), 20)
    alpha, mscale = settings.stretch(20)
    inverse = settings.inverse_frequencies(4, alpha)
    exact = torch.outer(torch.arange(20.0), torch.cat([inverse, inverse])).cos()
    assert torch.equal(cos, (exact.half() * mscale).float())
    assert cos.dtype == torch.float32
    kept, _ = RotaryTables(RopeSettings(base_length=8, training_length=8, table_dtype="float32"), 4).rows(
        torch.arange(20), 20
    )
    torch.testing.assert_close(kept, exact * mscale)
    assert not torch.equal(kept, cos)


def test_rows_of_different_length() -> None:
    """Each row of a batch gets the table of its own length."""
    tables = RotaryTables(RopeSettings(base_length=8, training_length=8), 4)
    positions = torch.tensor([[2, 3], [11, 12], [40, 41]])
    found = tables.lookup(positions, [4, 13, 42])
    for row, length in enumerate((4, 13, 42)):
        for ours, alone in zip(found, tables.rows(positions[row], length), strict=True):
            assert torch.equal(ours[row], alone)


def test_growing_tables_keep_their_values() -> None:
    settings = RopeSettings(scheme="none", training_length=8, base_length=8)
    step_by_step, at_once = RotaryTables(settings, 8), RotaryTables(settings, 8)
    expected, _ = at_once.rows(torch.arange(100), 100)
    for length in range(1, 101):
        cos, _ = step_by_step.rows(torch.tensor([length - 1]), length)
        assert torch.equal(cos[0], expected[length - 1])


def test_tables_made_under_inference_mode_serve_training() -> None:
    tables = RotaryTables(RopeSettings(training_length=8, base_length=8), 4)
    with torch.inference_mode():
        tables.rows(torch.arange(4), 4)
    x = torch.randn(1, 4, 1, 4, requires_grad=True)
    cos, sin = tables.lookup(torch.arange(4)[None], [4])
    rotate(x, cos, sin).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotation(dtype: torch.dtype) -> None:
    """Pairs (j, j + d/2) turn by position * frequency: as complex numbers."""
    settings = RopeSettings(table_dtype="float32")
    cos, sin = RotaryTables(settings, 8).lookup(torch.arange(5)[None], [5])
    x = torch.randn(1, 5, 2, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = rotate(x, cos, sin)
    assert found.dtype == dtype
    turned = torch.complex(x[..., :4].float(), x[..., 4:].float())
    angles = torch.outer(torch.arange(5.0), settings.inverse_frequencies(8, 1))
    turned = turned * torch.polar(torch.ones_like(angles), angles)[None, :, None]
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(found.float(), expected.to(dtype).float(), atol=1e-6, rtol=1e-2)


def test_scores_depend_on_distance_only() -> None:
    tables = RotaryTables(RopeSettings(table_dtype="float32"), 16)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator)
    scores = []
    for start in (0, 7, 300):
        cos, sin = tables.lookup(torch.tensor([[start, start + 5]]), [400])
        turned_k = rotate(k, cos[:, :1], sin[:, :1])
        turned_q = rotate(q, cos[:, 1:], sin[:, 1:])
        scores.append((turned_q * turned_k).sum())
    torch.testing.assert_close(scores[1], scores[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(scores[2], scores[0], atol=1e-4, rtol=0)

"""Who holds which part of a tensor: every element somewhere, as often as is said, and ranges that fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.distributed.train_cases import make_config
from torch import Tensor

from telechat.errors import ConfigError
from telechat.models import parameter_table
from telechat.train.distributed.division import Division
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.distributed.state import box

LAYOUTS: list[tuple[dict[str, Any], dict[str, Any], int]] = [
    ({"dp": 3}, {}, 3),
    ({"dp": 2, "zero_stage": 0}, {}, 2),
    ({"tp": 4}, {"kv_heads": 2}, 4),
    ({"tp": 4, "dp": 2}, {"kv_heads": 1, "tied": True}, 8),
    ({"pp": 2, "pp_interleave": 2, "tp": 2, "cp": 2}, {"layers": 4, "tied": True}, 8),
    ({"ep": 2, "dp": 2, "tp": 2}, {"experts": 4}, 8),
    ({"ep": 4, "cp": 2, "zero_stage": 0}, {"experts": 4}, 8),
]


def division(axes: dict[str, Any], shape: dict[str, Any], world: int) -> Division:
    config = make_config(**shape)
    shapes = {parameter.name: parameter.shape for parameter in parameter_table(config)}
    return Division(config, ParallelLayout(**axes).for_world(world), shapes)


@pytest.mark.parametrize(("axes", "shape", "world"), LAYOUTS)
def test_every_element_is_held_as_often_as_is_said(
    axes: dict[str, Any], shape: dict[str, Any], world: int
) -> None:
    parts = division(axes, shape, world)
    times = {name: torch.zeros(whole) for name, whole in parts.shapes.items()}
    said: dict[str, Tensor] = {name: torch.zeros(whole) for name, whole in parts.shapes.items()}
    for rank in range(world):
        for name, cut in parts.held(rank).items():
            times[name][box(cut)] += 1
            said[name][box(cut)] = parts.num_copies(cut)
    for name, count in times.items():
        assert count.min() > 0, name
        assert torch.equal(count, said[name]), name


def test_a_bias_after_a_shared_product_is_held_once() -> None:
    parts = division({"tp": 2}, {}, 2)
    name = "transformer.h.0.mlp.down_proj.bias"
    assert name in parts.held(0) and name not in parts.held(1)


@pytest.mark.parametrize(
    ("axes", "shape", "world", "numbers"),
    [
        ({"tp": 3}, {}, 3, ("4 attention heads", "3 ranks")),
        ({"ep": 2}, {}, 2, ("ep is 2", "no experts")),
        ({"ep": 3}, {"experts": 4}, 3, ("4 experts", "ep 3")),
        ({"pp": 8}, {"layers": 2}, 8, ("2 layers", "8 pipeline stages")),
        ({"cp": 3, "context": "heads"}, {}, 3, ("4 attention heads", "cp 3")),
    ],
)
def test_a_layout_that_does_not_fit_the_model(
    axes: dict[str, Any], shape: dict[str, Any], world: int, numbers: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        division(axes, shape, world)
    assert all(number in caught.value.message for number in numbers), caught.value.message

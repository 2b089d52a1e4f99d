"""The `parallel` section: axes that multiply, a rank's place, and the layers of pipeline stages."""

from __future__ import annotations

from typing import Any

import pytest

from telechat.config import load_config
from telechat.errors import ConfigError
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.distributed.stages import layer_counts, stage_layers

# The MindFormers recipes of TeleChat2-115B.
OFFSET_115B = ((-1, -1, 0, 0, 0, 0, 0, 0), (-1, 0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 1, 1, 1, 1, -1))


def test_dp_takes_what_is_left() -> None:
    layout = ParallelLayout(tp=2, cp=2).for_world(16)
    assert layout.dp == 4
    assert layout.world_size == 16


@pytest.mark.parametrize(
    ("axes", "world", "numbers"),
    [
        ({"dp": 2, "tp": 2}, 8, ("dp 2", "tp 2", "is 4", "8 processes")),
        ({"tp": 3}, 8, ("tp 3", "is 3", "8 processes")),
        ({"tp": 4}, 2, ("tp 4", "2 processes")),
    ],
)
def test_axes_that_do_not_multiply(axes: dict[str, Any], world: int, numbers: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        ParallelLayout(**axes).for_world(world)
    assert all(number in caught.value.message for number in numbers), caught.value.message


def test_every_rank_has_a_place_of_its_own() -> None:
    layout = ParallelLayout(dp=2, tp=2, pp=2, cp=3, ep=2).for_world(48)
    places = [layout.place(rank) for rank in range(48)]
    assert len(set(places)) == 48
    # Ranks of one tensor are neighbours; those of a pipeline are furthest apart.
    assert (places[0].tp, places[1].tp) == (0, 1)
    assert (places[23].pp, places[24].pp) == (0, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tp": 0},
        {"pp_interleave": 2},
        {"engine": "deepspeed", "tp": 2},
        {"deepspeed": {"zero_optimization": {}}},
    ],
)
def test_contradictions_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"parallel\."):
        ParallelLayout(**wrong)


def test_offsets_of_the_35b() -> None:
    layout = ParallelLayout(pp=4, pp_offset=(-1, 1, 1, -1))
    assert layer_counts(64, layout) == [[15, 17, 17, 15]]
    assert stage_layers(64, layout)[1] == range(15, 32)


def test_offsets_of_the_115b() -> None:
    layout = ParallelLayout(pp=8, pp_interleave=3, pp_offset=OFFSET_115B)
    assert layer_counts(96, layout) == [
        [3, 3, 4, 4, 4, 4, 4, 4],
        [3, 4, 4, 4, 4, 4, 4, 4],
        [4, 4, 4, 5, 5, 5, 5, 3],
    ]
    stages = stage_layers(96, layout)
    assert len(stages) == 24
    assert [layer for stage in stages for layer in stage] == list(range(96))


def test_without_offsets_the_middle_stages_take_the_rest() -> None:
    assert layer_counts(6, ParallelLayout(pp=4)) == [[1, 2, 2, 1]]
    assert layer_counts(8, ParallelLayout(pp=2, pp_interleave=2)) == [[2, 2], [2, 2]]


@pytest.mark.parametrize("offset", [(1, 1), (0, 0, 0), ((0, 0), (0, 0)), (-5, 5)])
def test_offsets_that_do_not_fit(offset: Any) -> None:
    with pytest.raises(ConfigError, match="pp_offset"):
        layer_counts(8, ParallelLayout(pp=2, pp_offset=offset))


def test_a_recipe_gives_the_table(tmp_path: Any) -> None:
    file = tmp_path / "layout.yaml"
    file.write_text("pp: 2\npp_interleave: 2\npp_offset: [[-1, 0], [0, 1]]\n", encoding="utf-8")
    layout = load_config(ParallelLayout, file)
    assert layer_counts(8, layout) == [[1, 2], [2, 3]]
    assert load_config(ParallelLayout, None, {"pp": "2", "pp_offset": "-1,1"}).pp_offset == (-1, 1)

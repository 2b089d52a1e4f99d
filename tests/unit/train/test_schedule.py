"""Learning-rate factors of every shape, and how long a run is."""

from __future__ import annotations

import math

import pytest

from telechat.errors import ConfigError
from telechat.train.config import ScheduleSection
from telechat.train.schedule import Schedule, plan_schedule


def plan(**settings: object) -> Schedule:
    section = ScheduleSection(total_steps=100, warmup_steps=10, **settings)  # type: ignore[arg-type]
    return plan_schedule(section, steps_per_epoch=1)


def test_wsd_warms_up_holds_and_falls() -> None:
    factors = [plan(decay_fraction=0.5).factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:50] == [1.0] * 41
    assert factors[75] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("settings", "step", "expected"),
    [
        ({"name": "cosine"}, 10, 1.0),
        ({"name": "cosine"}, 55, 0.5),
        ({"name": "cosine"}, 100, 0.0),
        ({"name": "cosine", "end_factor": 0.1}, 100, 0.1),
        ({"name": "cosine", "end_factor": 0.1}, 55, 0.55),
        ({"name": "linear"}, 55, 0.5),
        ({"name": "polynomial", "power": 2.0}, 55, 0.25),
        ({"name": "restarts", "cycles": 2}, 54, 0.5 * (1 + math.cos(math.pi * 88 / 90))),
        ({"name": "restarts", "cycles": 2}, 55, 1.0),
        ({"name": "constant"}, 99, 1.0),
        ({"name": "constant"}, 4, 0.5),
    ],
)
def test_shapes(settings: dict[str, object], step: int, expected: float) -> None:
    assert plan(**settings).factor(step) == pytest.approx(expected, abs=1e-12)


def test_length_and_warm_up_may_come_from_the_data() -> None:
    schedule = plan_schedule(ScheduleSection(epochs=2.5, warmup_fraction=0.1), steps_per_epoch=33.3)
    assert (schedule.total_steps, schedule.warmup_steps) == (84, 8)


def test_total_steps_replace_epochs() -> None:
    assert plan_schedule(ScheduleSection(total_steps=7, epochs=3), steps_per_epoch=10).total_steps == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 10, "warmup_steps": 10}, "warmup_steps is 10"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"epochs": 0}, "must be positive"),
        ({"decay_fraction": 1.5}, r"decay_fraction is 1.5; it must be in \[0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleSection(**settings)  # type: ignore[arg-type]


def test_a_warm_up_longer_than_the_epochs_is_refused() -> None:
    with pytest.raises(ConfigError, match="warm-up of 20 steps does not fit into a run of 10"):
        plan_schedule(ScheduleSection(warmup_steps=20), steps_per_epoch=10)

"""The loss scale of fp16 moves as in the documented runs."""

from __future__ import annotations

from telechat.train.precision import GROWTH_STEPS, LossScale


def after(scale: LossScale, *overflows: bool) -> float:
    """The scale after steps, as a power of two times the first one."""
    for overflowed in overflows:
        scale.update(overflowed=overflowed)
    return scale.scale / 2.0**12


def test_the_first_overflow_is_forgiven_and_each_further_one_halves() -> None:
    assert after(LossScale(enabled=True), True) == 1
    assert after(LossScale(enabled=True), True, True) == 1 / 2
    # Good steps in between do not count, unless there are enough of them to double.
    assert after(LossScale(enabled=True), True, *[False] * (GROWTH_STEPS - 1), True, True) == 1 / 4


def test_enough_good_steps_double_and_forgive_again() -> None:
    scale = LossScale(enabled=True)
    assert after(scale, True, True, *[False] * GROWTH_STEPS) == 1
    assert after(scale, True) == 1
    assert after(scale, True) == 1 / 2


def test_it_never_falls_below_one() -> None:
    assert after(LossScale(enabled=True), *[True] * 20) == 1 / 2**12


def test_a_resumed_run_remembers_the_overflow() -> None:
    before, resumed = LossScale(enabled=True), LossScale(enabled=True)
    after(before, True)
    resumed.load_state_dict(before.state_dict())
    assert after(resumed, True) == 1 / 2
    resumed.load_state_dict({"scale": 8.0, "good_steps": 3})  # of a version that did not count them
    assert after(resumed, True) == 8 / 2**12


def test_it_is_off_for_other_formats() -> None:
    scale = LossScale(enabled=False)
    scale.update(overflowed=True)
    scale.update(overflowed=True)
    assert scale.scale == 1

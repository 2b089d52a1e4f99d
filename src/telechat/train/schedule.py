"""The learning-rate factor of a step: warm-up, then one of six shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from telechat.errors import ConfigError
from telechat.train.config import ScheduleSection


@dataclass(frozen=True)
class Schedule:
    """A schedule whose length is known.

    Attributes:
        section: shape and its numbers.
        total_steps: optimiser steps of the run.
        warmup_steps: steps of the warm-up, at the start.
    """

    section: ScheduleSection
    total_steps: int
    warmup_steps: int

    def factor(self, step: int) -> float:
        """Factor in [0, 1] on the peak learning rate at a zero-based step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        end = self.section.end_factor
        return end + (1.0 - end) * self._shape(step)

    def _shape(self, step: int) -> float:
        """From 1 after the warm-up to 0 at `total_steps`, or as the shape's name says."""
        section = self.section
        remaining = (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
        match section.name:
            case "wsd":
                decay_steps = max(1, int(self.total_steps * section.decay_fraction))
                return min(1.0, (self.total_steps - step) / decay_steps)
            case "cosine":
                return _cosine(1.0 - remaining)
            case "restarts":
                return _cosine((1.0 - remaining) * section.cycles % 1.0)
            case "polynomial":
                return float(remaining**section.power)
            case "linear":
                return remaining
            case "constant":
                return 1.0


def plan_schedule(section: ScheduleSection, *, steps_per_epoch: float) -> Schedule:
    """The schedule of a run over data that gives `steps_per_epoch` optimiser steps a pass.

    Raises:
        ConfigError: the warm-up does not fit into the run.
    """
    total = section.total_steps
    if total is None:
        total = max(1, math.ceil(section.epochs * steps_per_epoch))
    warmup = section.warmup_steps
    if warmup is None:
        warmup = int(section.warmup_fraction * total)
    if warmup >= total:
        raise ConfigError(
            f"The warm-up of {warmup} steps does not fit into a run of {total}.",
            hint="Lower schedule.warmup_steps, or train for more epochs.",
        )
    return Schedule(section, total, warmup)


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))

"""Numbers of a recipe that make no sense are refused when it is read, by the name of their key."""

from __future__ import annotations

import math

import pytest

from telechat.config import from_mapping
from telechat.errors import ConfigError
from telechat.train.config import (
    BatchSection,
    EvaluationSection,
    MoeSection,
    OptimizerSection,
    OutputSection,
    ScheduleSection,
)
from telechat.train.preference_settings import PreferenceSection


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (MoeSection, {"capacity_factor": -1.0}, "model.moe.capacity_factor is -1.0; it must be at least 0"),
        (BatchSection, {"micro_batches": 0}, "batch.micro_batches is 0; it must be at least 1"),
        (OptimizerSection, {"lr": -1e-3}, "optimizer.lr is -0.001"),
        (OptimizerSection, {"max_grad_norm": math.nan}, "optimizer.max_grad_norm is nan"),
        (OptimizerSection, {"weight_decay": math.inf}, "optimizer.weight_decay is inf"),
        (
            OptimizerSection,
            {"betas": [0.9, 1.0]},
            r"optimizer.betas is \[0.9, 1.0\]; both must be in \[0, 1\)",
        ),
        (ScheduleSection, {"warmup_steps": -1}, "schedule.warmup_steps is -1"),
        (ScheduleSection, {"cycles": 0}, "schedule.cycles is 0"),
        (EvaluationSection, {"every": 0}, "evaluation.every is 0"),
        (OutputSection, {"folder": "o", "save_every": 0}, "output.save_every is 0"),
        (PreferenceSection, {"loss": "kto", "undesirable_weight": -1.0}, "must not be negative"),
    ],
)
def test_a_number_out_of_range_is_refused(section: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(section, values)


def test_null_and_zero_stand_where_they_mean_something() -> None:
    assert OptimizerSection(max_grad_norm=0, weight_decay=0, lr=0).max_grad_norm == 0
    assert MoeSection(capacity_factor=0).aux_loss_factor is None
    assert ScheduleSection(total_steps=1, warmup_steps=0).total_steps == 1

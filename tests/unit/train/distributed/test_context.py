"""A rank's share of a batch: the rotary tables of one process, whatever rows are padded to."""

from __future__ import annotations

from typing import Any

import torch

from telechat.device import CPU
from telechat.layers.rotary import RopeSettings, RotaryTables
from telechat.train.batch import IGNORED, PADDING_SEGMENT, Batch
from telechat.train.distributed.context import ContextShare
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.forward import attention_inputs

LENGTH, PADDED = 48, 64


def padded_batch() -> Batch:
    """One row of 48 tokens in 64 places."""

    def padded(values: torch.Tensor, padding: int) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, PADDED - LENGTH), value=padding)[None]

    return Batch(
        ids=padded(torch.ones(LENGTH, dtype=torch.int64), 0),
        positions=padded(torch.arange(LENGTH), 0),
        segments=padded(torch.zeros(LENGTH, dtype=torch.int32), PADDING_SEGMENT),
        targets=padded(torch.ones(LENGTH, dtype=torch.int64), IGNORED),
    )


def test_padding_past_the_training_length_stretches_no_table() -> None:
    rotary = RotaryTables(RopeSettings(base_length=32, training_length=LENGTH), 16)
    assert rotary.settings.stretch(PADDED) != rotary.settings.stretch(LENGTH)
    layout = ParallelLayout().for_world(1)
    unused: Any = None
    context = ContextShare(layout, layout.place(0), None, unused, torch.float32)
    inputs, attend = context.inputs(rotary, context.share(padded_batch(), CPU, balance_weight=0.0))
    alone = attention_inputs(rotary, padded_batch(), dtype=torch.float32)
    assert attend is None
    assert torch.equal(inputs.cos_BSd, alone.cos_BSd) and torch.equal(inputs.sin_BSd, alone.sin_BSd)

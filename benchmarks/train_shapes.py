"""Models, batches and rows that training is timed on. Standard library and torch; knows no engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.shapes import SHAPES, Shape


@dataclass(frozen=True)
class TrainShape:
    """A model and the batch of a step; every token is learnt.

    Attributes:
        model: its widths.
        is_tied: the head is the embedding.
        rows, length: of a step's batch.
    """

    model: Shape
    is_tied: bool
    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.length


TRAIN_SHAPES = {
    # About 100 million weights each.
    "32k": TrainShape(Shape("32k", 12, 768, 2048, 12, vocab=32000), True, rows=4, length=512),
    "131k": TrainShape(Shape("131k", 10, 512, 1408, 8, vocab=131072), True, rows=2, length=2048),
    "7B-2048": TrainShape(SHAPES["7B"], False, rows=8, length=2048),
    "7B-8192": TrainShape(SHAPES["7B"], False, rows=2, length=8192),
    "tiny": TrainShape(SHAPES["tiny"], True, rows=2, length=64),
}


def rows_of_step(shape: TrainShape, step: int) -> Tensor:
    """Random ids int64 [rows, length], the same for every engine."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(10, shape.model.vocab, (shape.rows, shape.length), generator=generator)

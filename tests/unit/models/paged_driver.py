"""Drives an executor by hand: texts in pieces, blocks handed out in a scattered order."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from telechat.models.paged import Executor, PagedBatch
from telechat.ops.paged import Sequences

NUM_BLOCKS = 40


class Driver:
    """Texts by name, each with the blocks it owns and how far it has been computed."""

    def __init__(self, executor: Executor, block_size: int = 16, *, num_blocks: int = NUM_BLOCKS) -> None:
        self.executor = executor
        self.block_size = block_size
        self.free = list(range(num_blocks))
        random.Random(3).shuffle(self.free)
        self.tables: dict[str, list[int]] = {}
        self.lengths: dict[str, int] = {}
        executor.allocate(num_blocks, block_size)

    def batch(
        self, pieces: dict[str, Sequence[int]], *, rope_length: int | None = None, last_only: bool = False
    ) -> PagedBatch:
        """New tokens of several texts; each text has the rotary table of `rope_length`, or of its length."""
        ids, positions, slots, runs, wanted = [], [], [], [], []
        for name, piece in pieces.items():
            start = self.lengths.get(name, 0)
            self.lengths[name] = stop = start + len(piece)
            table = self.tables.setdefault(name, [])
            while len(table) * self.block_size < stop:
                table.append(self.free.pop())
            ids += list(piece)
            positions += list(range(start, stop))
            for place in range(start, stop):
                slots.append(table[place // self.block_size] * self.block_size + place % self.block_size)
            runs.append((len(ids), rope_length or stop))
            wanted += [len(ids) - 1] if last_only else range(len(ids) - len(piece), len(ids))
        return PagedBatch(
            torch.tensor(ids),
            torch.tensor(positions),
            runs,
            torch.tensor(slots),
            Sequences.of(
                [len(piece) for piece in pieces.values()],
                [self.lengths[name] for name in pieces],
                [self.tables[name] for name in pieces],
            ),
            torch.tensor(wanted, dtype=torch.int64),
        )

    def run(self, pieces: dict[str, Sequence[int]], *, rope_length: int | None = None) -> dict[str, Tensor]:
        """Logits [tokens, V] of the new tokens of each text."""
        logits = self.executor.forward(self.batch(pieces, rope_length=rope_length))
        parts = logits.split([len(piece) for piece in pieces.values()])
        return dict(zip(pieces, parts, strict=True))


def text(length: int, seed: int, vocab_size: int = 50) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(vocab_size, (length,), generator=generator).tolist()
    return ids

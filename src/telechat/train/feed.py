"""Batches of a run in order: which samples each step shows, and their tensors.

The order is a function of seed and step alone, so resuming needs no stored state, and of nothing that depends
on the number of devices: data-parallel ranks share one step's batches. Knows nothing of models or losses.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from telechat.data.samples import BatchArrays
from telechat.errors import ConfigError
from telechat.train.batch import Batch
from telechat.train.batches import epoch_batches, steps_from
from telechat.train.config import BatchSection

# Shapes of padded batches are rounded up to multiples of these. Matrix libraries generate code for every new
# shape; without the rounding that took a fifth of the training time of a small model.
_ROW_STEP = 8
_LENGTH_STEP = 32


class Samples(Protocol):
    """What a run learns: `telechat.data` makes them."""

    @property
    def lengths(self) -> list[int]:
        """Tokens per sample."""
        ...

    def batch(
        self, rows: Sequence[int], *, pad_id: int, num_rows: int | None = None, length: int | None = None
    ) -> BatchArrays:
        """Samples as arrays of `num_rows` rows of `length`, padded on the right."""
        ...

    def describe(self, samples: Sequence[int]) -> str:
        """The rows that samples were made of, by file and line."""
        ...


@dataclass(frozen=True)
class StepBatches:
    """What one step shows.

    Attributes:
        epoch: pass over the data, from 0.
        batches: this rank's share, on the host.
        samples: for each of these batches, the numbers of its samples.
        num_tokens: tokens of the whole step over all ranks, padding not counted.
    """

    epoch: int
    batches: list[Batch]
    samples: list[list[int]]
    num_tokens: int


class Feed:
    """The steps of a run.

    Args:
        samples: what to learn.
        section: how samples are grouped.
        row_length: tokens of every row, or None to pad to the longest of a batch.
        pad_id: token id of padding.
        seed: of the order.
        rank, num_ranks: this rank's share of each step's batches, of how many.

    Attributes:
        lengths: tokens of each sample, which decide what is shown together.
        num_tokens: tokens of each sample for the count of a step's.

    Raises:
        ConfigError: ranks cannot share the batches, or a batch has no room for one row.
    """

    def __init__(
        self,
        samples: Samples,
        section: BatchSection,
        *,
        row_length: int | None,
        pad_id: int,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.samples = samples
        self.section = section
        self.row_length = row_length
        self.pad_id = pad_id
        self.seed = seed
        self.rank, self.num_ranks = rank, num_ranks
        self.max_tokens = section.tokens_per_step // section.micro_batches
        check_grouping(section, row_length=row_length, num_ranks=num_ranks)
        self.lengths = samples.lengths
        self.num_tokens = self.lengths
        # Rows of one length each count as full, so that every batch has as many of them as fit.
        self._places = self.lengths if row_length is None else [row_length] * len(self.lengths)

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps of the first pass over the data."""
        return len(self._epoch(0)) / self.section.micro_batches

    def fingerprint(self) -> int:
        """A number that differs where the samples have other lengths or come in another order."""
        return zlib.crc32(repr((self.section, self.row_length, self.seed, self.lengths)).encode())

    def steps(self, first_step: int) -> Iterator[StepBatches]:
        """Endless steps from a zero-based step on."""
        for epoch, groups in steps_from(
            self._places,
            max_tokens=self.max_tokens,
            batches_per_step=self.section.micro_batches,
            rows_per_bucket=self.section.rows_per_bucket,
            seed=self.seed,
            first_step=first_step,
        ):
            share = groups[self.rank :: self.num_ranks]
            num_tokens = sum(self.num_tokens[sample] for group in groups for sample in group)
            yield StepBatches(epoch, [self.collate(group) for group in share], share, num_tokens)

    def one_pass(self) -> Iterator[Batch]:
        """Every sample once, as this rank's share of equally many batches for each rank; for evaluation."""
        groups = self._epoch(0)
        groups += [[] for _ in range(-len(groups) % self.num_ranks)]
        return map(self.collate, groups[self.rank :: self.num_ranks])

    def collate(self, samples: Sequence[int]) -> Batch:
        """The samples of these numbers as one batch. Padding comes last, so causality hides it."""
        num_rows, length = self._shape(samples)
        arrays = self.samples.batch(samples, pad_id=self.pad_id, num_rows=num_rows, length=length)
        return Batch.from_arrays(arrays)

    def _shape(self, samples: Sequence[int]) -> tuple[int, int]:
        """Rows and tokens per row."""
        if self.row_length is not None:
            return self.max_tokens // self.row_length, self.row_length
        length = padded_length(max((self.lengths[sample] for sample in samples), default=1))
        # Empty rows cost as much as others, so there are none beyond those that fit a batch.
        rounded = -(-max(1, len(samples)) // _ROW_STEP) * _ROW_STEP
        return max(len(samples), min(rounded, max(1, self.max_tokens // length))), length

    def _epoch(self, epoch: int) -> list[list[int]]:
        return epoch_batches(
            self._places,
            max_tokens=self.max_tokens,
            rows_per_bucket=self.section.rows_per_bucket,
            seed=self.seed,
            epoch=epoch,
        )


def check_grouping(section: BatchSection, *, row_length: int | None, num_ranks: int) -> None:
    """Refuse settings under which ranks cannot share the batches, or a batch has no room for one row.

    Args:
        row_length: tokens of every row, or None to pad to the longest of a batch.
        num_ranks: how many share each step's batches.

    Raises:
        ConfigError: names both numbers.
    """
    max_tokens = section.tokens_per_step // section.micro_batches
    if section.micro_batches % num_ranks:
        raise ConfigError(
            f"batch.micro_batches is {section.micro_batches}; {num_ranks} data-parallel ranks cannot "
            "share that evenly.",
            hint=f"Set it to a multiple of {num_ranks}.",
        )
    if row_length is not None and max_tokens < row_length:
        raise ConfigError(
            f"A micro batch holds {max_tokens} tokens (batch.tokens_per_step / micro_batches); "
            f"one row has {row_length}.",
            hint="Raise batch.tokens_per_step or lower batch.micro_batches or data.max_length.",
        )


def padded_length(longest: int) -> int:
    """Tokens of a padded row."""
    return -(-longest // _LENGTH_STEP) * _LENGTH_STEP

"""Batches of preferences: pairs of answers, or judged answers, with their references.

References, the log-probabilities under the weights that a run starts from, are measured once, before the
first step, by the engine that trains; after that no second model is needed. Knows nothing of losses.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from telechat.data.preferences import PreferenceSet, load_preferences
from telechat.data.samples import BatchArrays, fill_batch
from telechat.data.sequences import Sequences
from telechat.tokenizer import Tokenizer
from telechat.train.batch import Batch
from telechat.train.config import TrainConfig
from telechat.train.engine import TrainEngine
from telechat.train.feed import Feed, padded_length
from telechat.train.preference import PreferenceBatch

log = logging.getLogger(__name__)

# Sequences given to the engine at a time while references are measured.
_MEASURED_AT_ONCE = 64


class PreferenceSamples:
    """Rows of two sequences each: chosen and rejected answer, or judged and mismatched answer.

    Attributes:
        sequences: all of them.
        upper, lower: int64 [rows], the numbers of each row's two sequences.
        is_good: bool [rows], verdicts on the upper ones; None for pairs.
        reference: float32 [sequences], log-probability of each one's answer under the start weights.
    """

    def __init__(self, rows: PreferenceSet, *, max_length: int, seed: int) -> None:
        self._origins = rows.origins
        self.is_good = rows.labels
        numbers = np.arange(len(rows))
        if rows.is_paired:
            self.sequences = rows.sequences
            self.upper, self.lower = 2 * numbers, 2 * numbers + 1
        else:
            others = rows.mismatched(max_length=max_length, seed=seed)
            self.sequences = _joined(rows.sequences, others)
            self.upper, self.lower = numbers, len(rows) + numbers
        self.reference: npt.NDArray[np.float32] = np.zeros(len(self.sequences), dtype=np.float32)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row's longer sequence."""
        lengths = self.sequences.lengths
        longest: list[int] = np.maximum(lengths[self.upper], lengths[self.lower]).tolist()
        return longest

    @property
    def num_tokens(self) -> list[int]:
        """Tokens of each row's two sequences."""
        lengths = self.sequences.lengths
        both: list[int] = (lengths[self.upper] + lengths[self.lower]).tolist()
        return both

    def describe(self, samples: Sequence[int]) -> str:
        """These rows by file and line."""
        return self._origins.describe(samples)

    def batch(
        self, rows: Sequence[int], *, pad_id: int, num_rows: int | None = None, length: int | None = None
    ) -> BatchArrays:
        """The upper sequences of rows, padded to `num_rows` of them, and then the lower ones."""
        padding: list[list[int]] = [[] for _ in range(max(0, (num_rows or 0) - len(rows)))]
        upper, lower = ([[int(half[row])] for row in rows] for half in (self.upper, self.lower))
        return fill_batch(self.sequences, upper + padding + lower + padding, pad_id=pad_id, length=length)


class PreferenceFeed(Feed):
    """The steps of a run on preferences; a batch is a `PreferenceBatch`. Arguments as `Feed`."""

    samples: PreferenceSamples

    def __init__(
        self, samples: PreferenceSamples, config: TrainConfig, *, pad_id: int, rank: int, num_ranks: int
    ) -> None:
        super().__init__(
            samples,
            config.batch,
            row_length=None,
            pad_id=pad_id,
            seed=config.seed,
            rank=rank,
            num_ranks=num_ranks,
        )
        self.max_tokens //= 2  # each row stands for two sequences
        self.num_tokens = samples.num_tokens

    def collate(self, samples: Sequence[int]) -> PreferenceBatch:
        """The rows of these numbers as one batch."""
        plain = super().collate(samples)
        half = len(plain.ids) // 2
        numbers = np.array(samples, dtype=np.int64)

        def halves(upper: npt.NDArray[np.float32], lower: npt.NDArray[np.float32]) -> Tensor:
            reference = torch.zeros(2, half)
            reference[0, : len(upper)], reference[1, : len(lower)] = map(torch.from_numpy, (upper, lower))
            return reference.flatten()

        reference, is_good = self.samples.reference, None
        if self.samples.is_good is not None:
            is_good = torch.zeros(half, dtype=torch.bool)
            is_good[: len(numbers)] = torch.from_numpy(self.samples.is_good[numbers])
        return PreferenceBatch(
            **vars(plain),
            num_pairs=len(numbers),
            reference=halves(reference[self.samples.upper[numbers]], reference[self.samples.lower[numbers]]),
            is_good=is_good,
        )


def open_preferences(
    config: TrainConfig, file: str, tokenizer: Tokenizer, engine: TrainEngine
) -> PreferenceFeed:
    """Preference rows of a file as batches, this rank's share of them, with their references measured.

    Args:
        engine: holds the weights that the run starts from.

    Raises:
        ConfigError: the file cannot be read or has no usable row.
    """
    section, data = config.preference, config.data
    assert section is not None
    rows = load_preferences(
        file,
        tokenizer,
        max_length=data.max_length,
        paired=section.is_paired,
        on_bad_row=data.on_bad_row,
        seed=config.seed,
    )
    samples = PreferenceSamples(rows, max_length=data.max_length, seed=config.seed)
    pad_id = tokenizer.special.pad
    if section.needs_reference:
        measure_references(engine, samples, pad_id=pad_id)
    return PreferenceFeed(samples, config, pad_id=pad_id, rank=engine.data_rank, num_ranks=engine.data_size)


def measure_references(engine: TrainEngine, samples: PreferenceSamples, *, pad_id: int) -> None:
    """Fill `samples.reference` by the engine's present weights; every rank calls it alike.

    The engine's loss of a plain batch must be minus the log-probability of its targets.
    """
    total = len(samples.sequences)
    log.info("measuring %d references by the start weights", total)
    found = torch.zeros(total)
    share = list(range(total))[engine.data_rank :: engine.data_size]
    most = -(-total // engine.data_size)
    for start in range(0, most, _MEASURED_AT_ONCE):
        numbers = share[start : start + _MEASURED_AT_ONCE]
        # Ranks evaluate equally often: one that has run out shows some sequence again.
        missing = min(most - start, _MEASURED_AT_ONCE) - len(numbers)
        shown = numbers + [0] * missing
        parts = engine.evaluate([_alone(samples.sequences, number, pad_id) for number in shown]).parts
        found[numbers] = -parts[: len(numbers)].float().cpu()
    if engine.data_size > 1:
        torch.distributed.all_reduce(found)
    samples.reference[:] = found.numpy()


def _alone(sequences: Sequences, number: int, pad_id: int) -> Batch:
    """One sequence as a batch."""
    length = padded_length(sequences.length_of(number))
    return Batch.from_arrays(fill_batch(sequences, [[number]], pad_id=pad_id, length=length))


def _joined(first: Sequences, second: Sequences) -> Sequences:
    """The sequences of both, one after the other."""
    return Sequences(
        np.concatenate([first.ids, second.ids]),
        np.concatenate([first.learnt, second.learnt]),
        np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]]),
    )

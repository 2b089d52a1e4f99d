"""Random numbers that are a function of a seed and a position, and of nothing else.

No stream is consumed, so it does not matter how often, in which order or beside what a token is drawn:
recomputing a request, or checking guesses for it, repeats the very same draws. The numbers are those of
SplitMix64: the seed, mixed, is where its stream begins; the position says which of the stream's numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_STRIDE = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_SPARE_BITS = np.uint64(11)
# Positions at a time: finding one costs as much as finding them all.
_FOUND_AT_ONCE = 32


def streams(seeds: Iterable[int]) -> Words:
    """Where the stream of each seed (0 to 2**64 - 1) begins."""
    return _mixed(np.array(list(seeds), np.uint64) + _STRIDE)


def uniforms(streams_N: Words, positions_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each stream, at its position."""
    return _fractions(streams_N + positions_N.astype(np.uint64) * _STRIDE)


class Draws:
    """The numbers of some streams, found for many positions at a time.

    Args:
        streams_N: where the streams begin.
    """

    def __init__(self, streams_N: Words) -> None:
        self.streams = streams_N
        self._next: list[int] = []
        self._left: list[npt.NDArray[np.float64]] = []

    def at(self, positions: list[int]) -> npt.NDArray[np.float64]:
        """One number for each stream, at its position; quick where each position follows the last call's."""
        if not self._left or positions != self._next:
            later = np.arange(_FOUND_AT_ONCE, dtype=np.int64)[:, None]
            words = self.streams + (np.array(positions, np.int64) + later).astype(np.uint64) * _STRIDE
            self._left = list(_fractions(words)[::-1])
        self._next = [position + 1 for position in positions]
        return self._left.pop()


def _fractions(words: Words) -> npt.NDArray[np.float64]:
    return (_mixed(words) >> _SPARE_BITS).astype(np.float64) * 2.0**-53


def _mixed(words: Words) -> Words:
    words = (words ^ (words >> _SHIFTS[0])) * _FACTORS[0]
    words = (words ^ (words >> _SHIFTS[1])) * _FACTORS[1]
    return words ^ (words >> _SHIFTS[2])

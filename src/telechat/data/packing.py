"""Puts whole conversations together into samples of at most `capacity` tokens, wasting little.

Best-fit decreasing: longest first, each into the fullest sample that still takes it. Decides with lengths
alone. What stands together in a sample stays apart in training: `samples` restarts positions and attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class _Spaces:
    """Which free spaces exist, 0..capacity; finds the smallest one of at least a length in O(log capacity).

    A binary tree over all spaces: a node is true where any space below it exists.
    """

    def __init__(self, capacity: int) -> None:
        self._leaves = 1 << capacity.bit_length()
        self._exists = bytearray(2 * self._leaves)

    def set(self, space: int, exists: bool) -> None:
        """Note that samples with that much space exist, or that there are none left."""
        node = self._leaves + space
        self._exists[node] = exists
        while node > 1:
            node //= 2
            self._exists[node] = self._exists[2 * node] or self._exists[2 * node + 1]

    def smallest(self, length: int) -> int | None:
        """The smallest existing space of at least `length`."""
        node = self._leaves + length
        while not self._exists[node]:
            # Up to the next subtree on the right; the root has none.
            while node & 1:
                node //= 2
            if node <= 1:
                return None
            node += 1
        while node < self._leaves:
            node = 2 * node if self._exists[2 * node] else 2 * node + 1
        return node - self._leaves


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Groups of indices whose lengths add up to at most `capacity`; every index occurs once.

    Groups, and indices within a group, are in order of falling length, equal lengths in the order given: the
    result depends on the arguments alone. O(n log n + n log capacity).

    Args:
        lengths: tokens per conversation, each at most `capacity`.
    """
    array = np.asarray(lengths, dtype=np.int64)
    if len(array) and int(array.max()) > capacity:
        raise AssertionError(f"a length of {int(array.max())} exceeds the capacity of {capacity}")
    packs: list[list[int]] = []
    spaces = _Spaces(capacity)
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    for index in np.argsort(-array, kind="stable").tolist():
        length = int(array[index])
        space = spaces.smallest(length)
        if space is None:
            pack, space = len(packs), capacity
            packs.append([])
        else:
            pack = by_space[space].pop()
            if not by_space[space]:
                spaces.set(space, False)
        packs[pack].append(index)
        if not by_space[space - length]:
            spaces.set(space - length, True)
        by_space[space - length].append(pack)
    return packs


def pack_arrays(packs: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Groups as members int64 [all] and offsets int64 [groups + 1]."""
    members = np.fromiter((index for pack in packs for index in pack), dtype=np.int64)
    sizes = np.fromiter((len(pack) for pack in packs), dtype=np.int64, count=len(packs))
    return members, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

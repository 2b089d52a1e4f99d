"""Which tokens a request's text holds, and how often its answer holds each.

Grows by a token at a time, so that penalties cost the same however long the text has become. Knows nothing of
logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

_FIRST_CAPACITY = 64


class History:
    """The distinct tokens of one text.

    Args:
        prompt_token_ids: tokens that count as seen but not as part of the answer.

    Attributes:
        num_seen: distinct tokens so far.
        ids_at, counts_at: addresses of the arrays behind `ids` and `counts`; they change as these grow.
    """

    def __init__(self, prompt_token_ids: Iterable[int] = ()) -> None:
        distinct = list(dict.fromkeys(prompt_token_ids))
        self.num_seen = len(distinct)
        self._place = {token_id: place for place, token_id in enumerate(distinct)}
        self._num_taken = 0
        capacity = max(_FIRST_CAPACITY, 2 * len(distinct))
        ids, counts = np.zeros(capacity, np.int32), np.zeros(capacity, np.int32)
        ids[: len(distinct)] = distinct
        self._hold(ids, counts)

    def _hold(self, ids: npt.NDArray[np.int32], counts: npt.NDArray[np.int32]) -> None:
        self._ids, self._counts = ids, counts
        self.ids_at, self.counts_at = ids.ctypes.data, counts.ctypes.data

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """The distinct tokens, int32 [num_seen], in the order of their first appearance."""
        return self._ids[: self.num_seen]

    @property
    def counts(self) -> npt.NDArray[np.int32]:
        """How often the answer holds each, int32 [num_seen]."""
        return self._counts[: self.num_seen]

    def catch_up(self, answer_token_ids: Sequence[int]) -> None:
        """Take in what the answer has gained since the last call; it only ever grows."""
        while self._num_taken < len(answer_token_ids):
            self._push(answer_token_ids[self._num_taken])
            self._num_taken += 1

    def followed_by(self, token_ids: Sequence[int]) -> History:
        """A copy that has also seen `token_ids` in the answer."""
        copy = History()
        copy.num_seen, copy._place = self.num_seen, dict(self._place)
        copy._hold(self._ids.copy(), self._counts.copy())
        copy.catch_up(token_ids)
        return copy

    def _push(self, token_id: int) -> None:
        place = self._place.get(token_id)
        if place is None:
            place = self._place[token_id] = self.num_seen
            if place == len(self._ids):
                self._hold(np.resize(self._ids, 2 * place), np.resize(self._counts, 2 * place))
            self._ids[place] = token_id
            self._counts[place] = 0
            self.num_seen += 1
        self._counts[place] += 1

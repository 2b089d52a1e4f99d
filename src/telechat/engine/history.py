"""Which tokens a request's text holds, and how often its answer holds each.

Grows by a token at a time, so that penalties cost the same however long the text has become. Knows nothing of
logits.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

# C reads these: int32 for ids and counts, int64 for numbers and addresses.
_INT32, _INT64 = "i", "q"


class History:
    """The distinct tokens of one text.

    Args:
        prompt_token_ids: tokens that count as seen but not as part of the answer.

    Attributes:
        at: address of three int64, the same for ever: distinct tokens so far, and the addresses of their ids
            and of their counts.
    """

    def __init__(self, prompt_token_ids: Iterable[int] = ()) -> None:
        distinct = dict.fromkeys(prompt_token_ids)
        self._place = {token_id: place for place, token_id in enumerate(distinct)}
        self._num_taken = 0
        self._hold(array(_INT32, distinct), array(_INT32, [0] * len(distinct)))

    def _hold(self, ids: array[int], counts: array[int]) -> None:
        self._ids, self._counts = ids, counts
        self._told = array(_INT64, [0, 0, 0])
        self.at = self._told.buffer_info()[0]
        self._tell()

    def _tell(self) -> None:
        told = self._told
        told[0] = len(self._ids)
        told[1], told[2] = self._ids.buffer_info()[0], self._counts.buffer_info()[0]

    @property
    def num_seen(self) -> int:
        """Distinct tokens so far."""
        return len(self._ids)

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """The distinct tokens, int32 [num_seen], in the order of their first appearance."""
        return np.array(self._ids, np.int32)

    @property
    def counts(self) -> npt.NDArray[np.int32]:
        """How often the answer holds each, int32 [num_seen]."""
        return np.array(self._counts, np.int32)

    def catch_up(self, answer_token_ids: Sequence[int]) -> None:
        """Take in what the answer has gained since the last call; it only ever grows."""
        num_taken = self._num_taken
        while num_taken < len(answer_token_ids):
            token_id = answer_token_ids[num_taken]
            place = self._place.get(token_id)
            if place is None:
                self._append(token_id)
            else:
                self._counts[place] += 1
            num_taken += 1
        self._num_taken = num_taken

    def _append(self, token_id: int) -> None:
        self._place[token_id] = len(self._ids)
        self._ids.append(token_id)
        self._counts.append(1)
        self._tell()

    def followed_by(self, token_ids: Sequence[int]) -> History:
        """A copy that has also seen `token_ids` in the answer."""
        copy = History()
        copy._place = dict(self._place)
        copy._hold(self._ids[:], self._counts[:])
        copy.catch_up(token_ids)
        return copy

"""A contiguous key/value cache whose rows each have their own length.

Keys are stored rotated. Token ids are kept beside them, so that a model in `consistent` rope mode can
recompute a row. Knows nothing of scheduling: the caller says which rows take part in a call (always the first
ones; `rows` makes others the first ones of a view).
"""

from __future__ import annotations

import torch
from torch import Tensor

from telechat.errors import ContextLengthError
from telechat.models.config import TeleChatConfig


class KVCache:
    """Storage for `batch_size` sequences of up to `max_length` tokens.

    Attributes:
        lengths: tokens stored in each row (padding columns included).
        token_ids: int64 [batch_size, max_length].
        visible: bool [batch_size, max_length]; False where a stored token is padding.
        has_padding: some stored token may be padding; while False, `visible` is all True and need not be
            read.
    """

    def __init__(
        self,
        config: TeleChatConfig,
        batch_size: int,
        max_length: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch_size, max_length, config.num_kv_heads, config.head_dim)
        self.max_length = max_length
        self.lengths = [0] * batch_size
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.token_ids = torch.zeros(batch_size, max_length, dtype=torch.int64, device=device)
        self.visible = torch.ones(batch_size, max_length, dtype=torch.bool, device=device)
        self.has_padding = False
        self._new_rows = self._new_columns = torch.empty(0, dtype=torch.int64)

    @property
    def batch_size(self) -> int:
        """Rows."""
        return len(self.lengths)

    def record(self, ids_BS: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Note the new tokens and their visibility, and make room for them.

        `attention_mask` is [B, S] for the new tokens or [B, past + S] for the whole rows (then all rows must
        be equally long). Lengths grow here; layers then store keys and values at the same columns.

        Returns:
            The new tokens' columns, int64 [B, S].

        Raises:
            ContextLengthError: a row would outgrow the cache.
        """
        B, S = ids_BS.shape
        pasts = self.lengths[:B]
        if max(pasts) + S > self.max_length:
            raise ContextLengthError(max(pasts) + S, self.max_length)
        device = self.token_ids.device
        self._new_rows = torch.arange(B, device=device)[:, None]
        self._new_columns = torch.tensor(pasts, device=device)[:, None] + torch.arange(S, device=device)
        self.token_ids[self._new_rows, self._new_columns] = ids_BS
        if attention_mask is not None:
            self._record_visibility(attention_mask, S)
        elif self.has_padding:
            self.visible[self._new_rows, self._new_columns] = True
        self.lengths[:B] = [past + S for past in pasts]
        return self._new_columns

    def _record_visibility(self, attention_mask: Tensor, num_new: int) -> None:
        self.has_padding = self.has_padding or not bool(attention_mask.all())
        for row, mask in enumerate(attention_mask.bool()):
            end = self.lengths[row] + num_new
            start = end - len(mask)
            self.visible[row, max(start, 0) : end] = mask[max(-start, 0) :]

    def store(self, layer: int, k_BSKd: Tensor, v_BSKd: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values (after `record`); returns all of them, each [B, T, K, d]."""
        B, S = k_BSKd.shape[:2]
        lengths = self.lengths[:B]
        keys, values = self.keys[layer], self.values[layer]
        longest = max(lengths)
        if min(lengths) == longest:
            keys[:B, longest - S : longest] = k_BSKd
            values[:B, longest - S : longest] = v_BSKd
        else:
            keys[self._new_rows, self._new_columns] = k_BSKd
            values[self._new_rows, self._new_columns] = v_BSKd
        return keys[:B, :longest], values[:B, :longest]

    def overwrite(self, layer: int, k_BTKd: Tensor, v_BTKd: Tensor) -> tuple[Tensor, Tensor]:
        """Replace one layer's keys and values of the first T columns; returns them as they are."""
        B, T = k_BTKd.shape[:2]
        self.keys[layer][:B, :T] = k_BTKd
        self.values[layer][:B, :T] = v_BTKd
        return k_BTKd, v_BTKd

    def rows(self, start: int, stop: int) -> KVCache:
        """Rows start .. stop-1 as a cache of their own.

        Tensors are shared, lengths are not: whoever lets a view grow tells this cache the new `lengths`.
        """
        view = object.__new__(KVCache)
        view.max_length = self.max_length
        view.lengths = self.lengths[start:stop]
        view.keys = [tensor[start:stop] for tensor in self.keys]
        view.values = [tensor[start:stop] for tensor in self.values]
        view.token_ids = self.token_ids[start:stop]
        view.visible = self.visible[start:stop]
        view.has_padding = self.has_padding
        view._new_rows = view._new_columns = self._new_rows
        return view

    def resized(self, batch_size: int, max_length: int) -> KVCache:
        """A copy with other dimensions; stored tokens that do not fit must be no longer needed."""
        other = object.__new__(KVCache)
        other.max_length = max_length
        kept = min(batch_size, self.batch_size)
        other.lengths = [min(length, max_length) for length in self.lengths[:kept]] + [0] * (
            batch_size - kept
        )
        used = max(other.lengths, default=0)

        def copied(tensor: Tensor, fill: float) -> Tensor:
            grown = torch.full(
                (batch_size, max_length, *tensor.shape[2:]), fill, dtype=tensor.dtype, device=tensor.device
            )
            grown[:kept, :used] = tensor[:kept, :used]
            return grown

        other.keys = [copied(tensor, 0) for tensor in self.keys]
        other.values = [copied(tensor, 0) for tensor in self.values]
        other.token_ids = copied(self.token_ids, 0)
        other.visible = copied(self.visible, True)
        other.has_padding = self.has_padding
        other._new_rows = other._new_columns = self._new_rows
        return other

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target` and empty it, so that the rows in use stay the first ones."""
        length = self.lengths[source]
        for tensor in (*self.keys, *self.values, self.token_ids, self.visible):
            tensor[target, :length] = tensor[source, :length]
        self.lengths[target], self.lengths[source] = length, 0

    def truncate(self, row: int, length: int) -> None:
        """Forget what row `row` holds past `length` tokens."""
        self.lengths[row] = min(self.lengths[row], length)

"""A contiguous key/value cache whose rows each have their own length.

Keys are stored rotated. Token ids are kept beside them, so that a model in `consistent` rope mode can recompute a
row. Knows nothing of scheduling: the caller says which rows take part in a call (always the first ones).
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

    def columns(self, batch_size: int, num_new: int) -> Tensor:
        """Where `num_new` tokens go in each of the first `batch_size` rows: int64 [batch_size, num_new]."""
        starts = torch.tensor(self.lengths[:batch_size], device=self.token_ids.device)
        return starts[:, None] + torch.arange(num_new, device=self.token_ids.device)

    def record(self, ids_BS: Tensor, attention_mask: Tensor | None) -> None:
        """Note the new tokens and their visibility, and make room for them.

        `attention_mask` is [B, S] for the new tokens or [B, past + S] for the whole rows (then all rows must be
        equally long). Lengths grow here; layers then store keys and values at the same columns.

        Raises:
            ContextLengthError: a row would outgrow the cache.
        """
        B, S = ids_BS.shape
        longest = max(self.lengths[:B]) + S
        if longest > self.max_length:
            raise ContextLengthError(longest, self.max_length)
        for row in range(B):
            past = self.lengths[row]
            self.token_ids[row, past : past + S] = ids_BS[row]
            if attention_mask is None:
                self.visible[row, past : past + S] = True
            else:
                start = past + S - attention_mask.shape[1]
                self.visible[row, max(start, 0) : past + S] = attention_mask[row, max(-start, 0) :].bool()
            self.lengths[row] = past + S

    def store(self, layer: int, k_BSKd: Tensor, v_BSKd: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values (after `record`); returns all of them, each [B, T, K, d]."""
        B, S = k_BSKd.shape[:2]
        lengths = self.lengths[:B]
        if len(set(lengths)) == 1:
            end = lengths[0]
            self.keys[layer][:B, end - S : end] = k_BSKd
            self.values[layer][:B, end - S : end] = v_BSKd
        else:
            for row, end in enumerate(lengths):
                self.keys[layer][row, end - S : end] = k_BSKd[row]
                self.values[layer][row, end - S : end] = v_BSKd[row]
        longest = max(lengths)
        return self.keys[layer][:B, :longest], self.values[layer][:B, :longest]

    def swap(self, first: int, second: int) -> None:
        """Exchange two rows, so that the rows in use stay the first ones."""
        order = [second, first]
        for tensor in (*self.keys, *self.values, self.token_ids, self.visible):
            tensor[[first, second]] = tensor[order]
        self.lengths[first], self.lengths[second] = self.lengths[second], self.lengths[first]

    def truncate(self, row: int, length: int) -> None:
        """Forget what row `row` holds past `length` tokens."""
        self.lengths[row] = min(self.lengths[row], length)

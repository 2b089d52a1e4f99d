"""transformers' key/value caches behind the interface that our decoder uses.

Keys and values live in the transformers `Cache`, which generation reorders for beams, crops for assisted
decoding and offloads; this object is made for one forward call and holds only what that call needs. All rows
are equally long, as everywhere in transformers: shorter ones are padded on the left.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

from telechat.errors import PromptError
from telechat.models import KVCache


class HostedCache(KVCache):
    """One call's view of a transformers cache.

    Args:
        past: holds keys and values as [B, K, T, d] per layer.
        batch_size: rows of the call.
    """

    def __init__(self, past: Cache, batch_size: int) -> None:
        # Deliberately without KVCache.__init__, which would allocate storage.
        self._past = past
        self.lengths = [int(past.get_seq_length())] * batch_size
        self.has_padding = False
        self.visible = torch.empty(0, dtype=torch.bool)

    def record(self, ids_BS: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Columns int64 [B, S] of the new tokens. The mask must cover cached tokens too: [B, past + S]."""
        batch_size, num_new = ids_BS.shape
        past = self.lengths[0]
        total = past + num_new
        if attention_mask is not None:
            if attention_mask.shape[1] != total:
                raise PromptError(
                    f"attention_mask covers {attention_mask.shape[1]} tokens; "
                    f"{past} cached and {num_new} new ones make {total}.",
                    hint="Pass the mask of the whole sequence together with past_key_values.",
                )
            self.visible = attention_mask.bool()
            self.has_padding = True
        self.lengths = [total] * batch_size
        return torch.arange(past, total, device=ids_BS.device).expand(batch_size, num_new)

    def store(self, layer: int, k_BSKd: Tensor, v_BSKd: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; returns all of them, each [B, T, K, d]."""
        keys, values = self._past.update(k_BSKd.transpose(1, 2), v_BSKd.transpose(1, 2), layer)
        total = self.lengths[0]  # a static cache returns its whole length
        return keys[:, :, :total].transpose(1, 2), values[:, :, :total].transpose(1, 2)

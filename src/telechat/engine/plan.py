"""How many requests may run at once, from the memory that is free. Decides with integers; asks no device."""

from __future__ import annotations

from telechat.models import TeleChatConfig

DEFAULT_MAX_BATCH_SIZE = 64
# Share of the free memory that the cache may fill by itself. While it grows, the old and the new one exist
# together, and prompts need room as well.
_CACHE_SHARE = 0.5


def cache_bytes_per_token(config: TeleChatConfig, element_bytes: int) -> int:
    """Bytes that one token's keys and values take, over all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * element_bytes


def default_batch_size(bytes_per_token: int, max_model_len: int, free_bytes: int | None) -> int:
    """Requests of `max_model_len` tokens that the cache can hold, from 1 to DEFAULT_MAX_BATCH_SIZE.

    `free_bytes` None: unknown, and not limiting.
    """
    if free_bytes is None:
        return DEFAULT_MAX_BATCH_SIZE
    fitting = int(free_bytes * _CACHE_SHARE) // (bytes_per_token * max_model_len)
    return max(1, min(DEFAULT_MAX_BATCH_SIZE, fitting))

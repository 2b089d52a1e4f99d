"""Default batch size from free memory."""

from __future__ import annotations

from telechat.engine.plan import DEFAULT_MAX_BATCH_SIZE, cache_bytes_per_token, default_batch_size
from telechat.models import preset

GIB = 1 << 30


def test_bytes_of_published_sizes() -> None:
    assert cache_bytes_per_token(preset("telechat-7b"), 2) == 2 * 30 * 4096 * 2
    config = preset("telechat2-115b")
    assert cache_bytes_per_token(config, 2) == 2 * config.num_layers * 8 * config.head_dim * 2


def test_batch_size_follows_the_free_memory() -> None:
    per_token = cache_bytes_per_token(preset("telechat-7b"), 2)
    assert default_batch_size(per_token, 8192, None) == DEFAULT_MAX_BATCH_SIZE
    assert default_batch_size(per_token, 8192, 1000 * GIB) == DEFAULT_MAX_BATCH_SIZE
    assert default_batch_size(per_token, 8192, 60 * GIB) == 8  # 3.75 GiB a request, half of the memory
    assert default_batch_size(per_token, 8192, GIB) == 1

"""Memory in huge pages behaves as any tensor's does."""

from __future__ import annotations

import gc

import torch

from telechat.ops.cpu.cache import allocate_cache
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.tensors import huge_zeros
from telechat.ops.paged import INT4, PagedCache


def test_zeros_that_can_be_written(context: Context) -> None:
    zeros = huge_zeros(context, (3, 5, 7), torch.bfloat16)
    assert zeros.shape == (3, 5, 7) and zeros.dtype == torch.bfloat16 and zeros.is_contiguous()
    assert not zeros.any()
    zeros += 2
    assert float(zeros.sum()) == 210


def test_the_memory_lives_as_long_as_a_view_and_no_longer(context: Context) -> None:
    def resident_mb() -> float:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096 / 2**20

    gc.collect()
    before = resident_mb()
    view = huge_zeros(context, (64, 2**20), torch.int8)[1:].flatten()
    gc.collect()
    assert resident_mb() > before + 48
    assert not view.any()
    del view
    gc.collect()
    assert resident_mb() < before + 16


def test_a_cache_of_each_type(context: Context) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int8, INT4):
        cache = allocate_cache(context, 3, 2, 16, 48, dtype)
        plain = PagedCache.allocate(3, 2, 16, 48, dtype=dtype)
        for name in ("keys", "values", "key_scales", "value_scales"):
            made, expected = getattr(cache, name), getattr(plain, name)
            assert (made is None) == (expected is None)
            assert made is None or (torch.equal(made, expected) and made.dtype == expected.dtype)
        assert cache.keys.data_ptr() != cache.values.data_ptr()
        assert (cache.key_scales is None) == dtype.is_floating_point

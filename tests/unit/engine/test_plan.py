"""The cache plan follows the memory, and refuses what cannot hold one request."""

from __future__ import annotations

import pytest
import torch

from telechat.device import MemoryInfo, memory_in_use
from telechat.engine import plan
from telechat.engine.plan import (
    BLOCK_SIZES,
    CachePlan,
    cache_memory,
    default_block_size,
    plan_cache,
    workspace_bytes,
)
from telechat.errors import ConfigError
from telechat.models import preset

GIB = 1 << 30
CPU = torch.device("cpu")


def planned(**changes: int | None) -> CachePlan:
    settings: dict[str, int | None] = {"max_model_len": 1000, "max_batch_size": 64, "block_size": 16}
    return plan_cache(lambda block_size: 100 * block_size, **{**settings, **changes})  # type: ignore[arg-type]


def test_as_many_blocks_as_are_useful() -> None:
    # 63 blocks hold one request; a quarter of 64 such.
    assert planned() == CachePlan(block_size=16, num_blocks=1008, bytes_per_block=1600)
    assert planned(max_batch_size=1).num_blocks == 63
    assert planned().num_tokens == 16128
    assert planned().num_bytes == 1008 * 1600


def test_memory_bounds_the_blocks() -> None:
    assert planned(available_bytes=200 * 1600 + 1599).num_blocks == 200
    assert planned(available_bytes=10**9).num_blocks == 1008


def test_the_cache_has_the_memory_it_was_given() -> None:
    assert planned(cache_bytes=5000 * 1600 + 1599).num_blocks == 5000
    assert planned(cache_bytes=70 * 1600, available_bytes=10**9).num_blocks == 70
    assert planned(cache_bytes=5000 * 1600, available_bytes=100 * 1600).num_blocks == 100
    with pytest.raises(ConfigError, match=r"holds 62 blocks .* needs 63 blocks"):
        planned(cache_bytes=63 * 1600 - 1)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_every_block_size_holds_one_request(block_size: int) -> None:
    needed = -(-1000 // block_size)
    assert planned(block_size=block_size, num_blocks=needed).num_tokens >= 1000
    with pytest.raises(ConfigError, match=rf"num_blocks is {needed - 1}; .* needs {needed} blocks") as caught:
        planned(block_size=block_size, num_blocks=needed - 1)
    assert f"--num-blocks {needed}" in str(caught.value.hint)
    assert f"--max-model-len {(needed - 1) * block_size}" in str(caught.value.hint)


def test_too_little_memory_is_refused_with_the_number_needed() -> None:
    with pytest.raises(ConfigError, match=r"holds 62 blocks .* needs 63 blocks") as caught:
        planned(available_bytes=63 * 1600 - 1)
    assert "--max-model-len 992" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="holds 0 blocks"):
        planned(available_bytes=0)


def test_num_blocks_asked_for_is_not_bounded_by_what_is_useful() -> None:
    assert planned(num_blocks=5000, available_bytes=0).num_blocks == 5000


@pytest.mark.parametrize("changes", [{"block_size": 48}, {"block_size": 0}, {"num_blocks": 0}])
def test_bad_numbers(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        planned(**changes)


def test_share_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "memory_info", lambda device: MemoryInfo(10 * GIB, 20 * GIB))
    assert cache_memory(CPU, memory_limit=None, workspace=GIB) == 4 * GIB
    assert cache_memory(CPU, memory_limit=None, workspace=6 * GIB) == 0
    monkeypatch.setattr(plan, "memory_info", lambda device: None)
    assert cache_memory(CPU, memory_limit=None, workspace=GIB) is None


def test_memory_limit_counts_what_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "memory_info", lambda device: MemoryInfo(10 * GIB, 20 * GIB))
    monkeypatch.setattr(plan, "memory_in_use", lambda device: 5 * GIB)
    assert cache_memory(CPU, memory_limit=8 * GIB, workspace=GIB) == 2 * GIB
    assert cache_memory(CPU, memory_limit=80 * GIB, workspace=GIB) == 10 * GIB
    assert cache_memory(CPU, memory_limit=9 * GIB, workspace=GIB, held_by_ranks=2 * GIB) == GIB
    with pytest.raises(ConfigError, match=r"memory_limit is 6.00 GiB; .* 5.00 GiB"):
        cache_memory(CPU, memory_limit=6 * GIB, workspace=GIB)
    monkeypatch.setattr(plan, "memory_in_use", lambda device: None)
    with pytest.raises(ConfigError, match="cannot be asked"):
        cache_memory(CPU, memory_limit=6 * GIB, workspace=GIB)


def test_memory_in_use_sees_new_memory() -> None:
    before = memory_in_use(CPU)
    if before is None:
        pytest.skip("this system does not say")
    block = torch.ones(64 << 20, dtype=torch.uint8)
    after = memory_in_use(CPU)
    assert after is not None
    assert after - before > (48 << 20), block.shape


def test_workspace_of_a_7b_chunk() -> None:
    size = workspace_bytes(preset("telechat-7b"), max_batch_tokens=2048, num_logit_rows=64)
    assert 0.3 * GIB < size < GIB


def test_default_block_sizes_are_possible() -> None:
    assert default_block_size(CPU) in BLOCK_SIZES
    assert default_block_size(torch.device("meta")) in BLOCK_SIZES

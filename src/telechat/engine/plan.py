"""How many blocks the cache has, from the memory that is free and what the user asked for.

`plan_cache` decides with integers; `cache_memory` is the one function here that asks a device. Knows nothing
of requests or tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from telechat.device import CPU, empty_cache, memory_in_use, memory_info
from telechat.errors import ConfigError
from telechat.models import TeleChatConfig

DEFAULT_MAX_BATCH_SIZE = 64
BLOCK_SIZES = (16, 32, 64, 96, 128)
# Small blocks waste less of a short text and share prefixes more finely; accelerators want long ones.
_BLOCK_SIZE_ON_CPU = 16
_BLOCK_SIZE_ELSEWHERE = 64
# Share of the free memory that the cache may fill by itself: other programs live on a CPU's memory.
_SHARE_ON_CPU = 0.5
_SHARE_ELSEWHERE = 0.92
# Requests seldom all run to their limit at once; where they do, some are computed again.
_USUAL_FILL = 0.25
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """The paged cache that an engine makes.

    Attributes:
        block_size: tokens of a block.
        num_blocks: blocks, all layers counted as one.
        bytes_per_block: memory of one, over all layers.
        spare_bytes: of the memory that the cache might have had, what it leaves; None where that is unknown.
    """

    block_size: int
    num_blocks: int
    bytes_per_block: int
    spare_bytes: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that fit."""
        return self.num_blocks * self.block_size

    @property
    def num_bytes(self) -> int:
        """Memory of the whole cache."""
        return self.num_blocks * self.bytes_per_block

    def describe(self) -> str:
        """One line for logs."""
        size = f"{self.num_bytes / _GIB:.2f} GiB"
        return (
            f"cache: {self.num_blocks} blocks of {self.block_size} tokens, {self.num_tokens} in all, {size}"
        )


def plan_cache(
    bytes_per_block: Callable[[int], int],
    *,
    max_model_len: int,
    max_batch_size: int,
    block_size: int,
    num_blocks: int | None = None,
    cache_bytes: int | None = None,
    available_bytes: int | None = None,
    reserved_bytes: int = 0,
) -> CachePlan:
    """Decide the number of blocks.

    Args:
        bytes_per_block: memory of a block of so many tokens (`Executor.cache_bytes_per_block`).
        max_model_len: most tokens of one request; the cache must hold one such.
        max_batch_size: requests that run at once.
        block_size: one of `BLOCK_SIZES`.
        num_blocks: as many, whatever memory there is; by default as many as are useful and fit.
        cache_bytes: as many as fit into so much memory and into what there is, useful or not.
        available_bytes: memory that the cache may have; None: unknown, and not limiting.
        reserved_bytes: of that, what is kept for adapters to come.

    Raises:
        ConfigError: a block size that there is none of, or too few blocks for one request.
    """
    if block_size not in BLOCK_SIZES:
        raise ConfigError(
            f"block_size is {block_size}; it must be one of {', '.join(map(str, BLOCK_SIZES))}."
        )
    if num_blocks is not None and num_blocks < 1:
        raise ConfigError(f"num_blocks is {num_blocks}; it must be at least 1.")
    size = bytes_per_block(block_size)
    needed = -(-max_model_len // block_size)
    room = None if available_bytes is None else max(available_bytes - reserved_bytes, 0)
    if num_blocks is None:
        wanted = max(needed, int(max_batch_size * needed * _USUAL_FILL))
        if cache_bytes is not None:
            wanted = cache_bytes // size
        num_blocks = wanted if room is None else min(wanted, room // size)
        if num_blocks < needed:
            left = min(bound for bound in (cache_bytes, room) if bound is not None)
            beside = f", beside {_gib(reserved_bytes)} kept for adapters" if reserved_bytes else ""
            raise ConfigError(
                f"The memory for the cache, {_gib(left)}{beside}, holds {num_blocks} blocks of "
                f"{block_size} tokens; max_model_len {max_model_len} needs {needed} blocks "
                f"({_gib(needed * size)}).",
                hint=_shorter(num_blocks * block_size, "Give more memory, or"),
            )
    elif num_blocks < needed:
        raise ConfigError(
            f"num_blocks is {num_blocks}; max_model_len {max_model_len} needs {needed} blocks of "
            f"{block_size} tokens.",
            hint=_shorter(num_blocks * block_size, f"Use --num-blocks {needed}, or"),
        )
    spare = None if available_bytes is None else available_bytes - num_blocks * size
    return CachePlan(block_size=block_size, num_blocks=num_blocks, bytes_per_block=size, spare_bytes=spare)


def _shorter(num_tokens: int, otherwise: str) -> str:
    return f"{otherwise} --max-model-len {num_tokens}." if num_tokens else f"{otherwise} a smaller model."


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"


def default_block_size(device: torch.device) -> int:
    """Tokens of a block where nobody asked for another size."""
    return _BLOCK_SIZE_ON_CPU if device.type == CPU.type else _BLOCK_SIZE_ELSEWHERE


def workspace_bytes(config: TeleChatConfig, *, max_batch_tokens: int, num_logit_rows: int) -> int:
    """Memory that a step needs besides weights and cache, in fp32 and generously counted.

    Args:
        num_logit_rows: most rows of logits that a step and its sampling hold at once.
    """
    width = 5 * config.hidden_size + 2 * config.num_kv_heads * config.head_dim + 2 * config.ffn_hidden_size
    # Scores and probabilities stand beside the logits while tokens are drawn.
    return 4 * (max_batch_tokens * width + 3 * num_logit_rows * config.vocab_size)


def cache_memory(
    device: torch.device, *, memory_limit: int | None, workspace: int, held_by_ranks: int = 0
) -> int | None:
    """Bytes that the cache may have now that the weights are in memory; None where that cannot be asked.

    Args:
        memory_limit: most bytes of this process on the device, weights included; by default a share of what
            is free.
        workspace: bytes to leave for the steps themselves.
        held_by_ranks: bytes that other processes of this model hold of the same memory.

    Raises:
        ConfigError: the weights alone exceed `memory_limit`.
    """
    empty_cache(device)  # what torch keeps for later tensors is free
    memory = memory_info(device)
    if memory_limit is None:
        if memory is None:
            return None
        share = _SHARE_ON_CPU if device.type == CPU.type else _SHARE_ELSEWHERE
        return max(int(memory.free_bytes * share) - workspace, 0)
    in_use = memory_in_use(device)
    if in_use is None:
        raise ConfigError(
            f"The memory in use on {device} cannot be asked, so memory_limit means nothing there.",
            hint="Use --num-blocks.",
        )
    in_use += held_by_ranks
    left = memory_limit - in_use - workspace
    if left <= 0:
        raise ConfigError(
            f"memory_limit is {_gib(memory_limit)}; the weights and this program take {_gib(in_use)}, "
            f"a step up to {_gib(workspace)}, which leaves nothing for the cache.",
            hint="Raise --memory-limit, or use --quantize or a smaller --max-batch-tokens.",
        )
    return left if memory is None else min(left, memory.free_bytes)

"""Which form of paged attention a model's layers are given, decided once and with a reason.

Every form has the contract of `telechat.ops.paged`. Knows devices by what their kernels say stands in their
way; knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from telechat.device import CPU
from telechat.ops import paged
from telechat.ops.cpu import library
from telechat.ops.cpu.cache import form_obstacle
from telechat.ops.cuda import choice as cuda
from telechat.ops.npu import choice as npu


@dataclass(frozen=True)
class PagedKernels:
    """The two operations that touch the cache, under one name.

    Attributes:
        rope_and_store: rotates queries in place and writes keys and values, see `paged`.
        attention: attention over the cache.
        reason: why this form and not a faster one.
    """

    name: str
    rope_and_store: paged.RopeAndStore
    attention: paged.PagedAttentionFunction
    reason: str


REFERENCE = PagedKernels(
    "reference", paged.rope_and_store_reference, paged.paged_attention_reference, "asked for by name"
)


def choose_paged_kernels(
    device: torch.device, *, dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int, block_size: int
) -> PagedKernels:
    """The fastest form that can run.

    Args:
        dtype, cache_dtype: of queries and of the cache.
    """
    if device.type == CPU.type:
        obstacle = form_obstacle(dtype, cache_dtype, head_dim, block_size) or library.obstacle()
        if obstacle is None:
            return _cpu_kernels()
    else:
        on_cuda = cuda.paged_obstacle(device, dtype, cache_dtype, head_dim)
        if on_cuda is None:
            return PagedKernels("triton", cuda.rope_and_store, cuda.paged_attention, "Triton kernels")
        on_npu = npu.paged_obstacle(device, dtype, cache_dtype, head_dim, block_size)
        if on_npu is None:
            return PagedKernels("torch_npu", *npu.paged_kernels(), "fused operators of torch_npu")
        obstacle = f"{on_cuda}; {on_npu}"
    return PagedKernels("torch", paged.rope_and_store_reference, paged.paged_attention_sdpa, obstacle)


def _cpu_kernels() -> PagedKernels:
    from telechat.ops.cpu.attention import paged_attention
    from telechat.ops.cpu.cache import rope_and_store
    from telechat.ops.cpu.context import shared_context

    context = shared_context(torch.get_num_threads())
    return PagedKernels(
        "c",
        partial(rope_and_store, context),
        partial(paged_attention, context),
        f"kernels in C, level {context.isa}",
    )

"""Which Triton kernels can serve a model on a CUDA device, or why they cannot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from telechat.ops.cuda import paged, rows
from telechat.ops.cuda.graphs import CudaRecorder
from telechat.ops.cuda.launch import dtype_obstacle, triton_obstacle
from telechat.ops.cuda.paged import paged_attention, rope_and_store
from telechat.ops.cuda.tuning import Products, device_time
from telechat.ops.fused import FusedKernels, Recorder

__all__ = ["fused_kernels", "paged_attention", "paged_obstacle", "rope_and_store", "triton_kernels"]


def fused_kernels(device: torch.device, dtype: torch.dtype, width: int) -> FusedKernels | str:
    """The kernels for models of `dtype` and hidden size `width`, or why they cannot run."""
    obstacle = triton_obstacle(device) or dtype_obstacle(dtype)
    if obstacle is None and width > rows.MAX_WIDTH:
        obstacle = f"the hidden size {width} is over {rows.MAX_WIDTH}"
    if obstacle is not None:
        return obstacle
    return triton_kernels(Products(device_time(device)), dtype, partial(CudaRecorder, device))


def triton_kernels(
    products: Products, dtype: torch.dtype, recorder: Callable[[], Recorder] | None
) -> FusedKernels:
    """The kernels for activations of `dtype`, whether they can run or not."""
    return FusedKernels(
        name="triton",
        rms_norm=rows.rms_norm,
        bind_linear=products.bind_linear,
        bind_quantized=partial(products.bind_quantized, dtype=dtype),
        swiglu=rows.swiglu,
        recorder=recorder,
        reason="Triton runs on this device",
    )


def paged_obstacle(
    device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int
) -> str | None:
    """Why the kernels of the paged cache cannot serve a model, or None."""
    return triton_obstacle(device) or paged.form_obstacle(dtype, cache_dtype, head_dim)

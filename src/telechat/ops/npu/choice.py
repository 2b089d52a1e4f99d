"""Which operators of torch_npu can serve a model on an Ascend device, or why they cannot."""

from __future__ import annotations

import importlib

import torch

from telechat.ops.fused import FusedKernels
from telechat.ops.npu import operators
from telechat.ops.paged import PagedAttentionFunction, RopeAndStore

_FUSED = ("npu_rms_norm", "npu_add_rms_norm", "npu_swiglu")
_PAGED = ("npu_rotary_mul", "npu_fused_infer_attention_score")
_DTYPES = (torch.float16, torch.bfloat16)
# What npu_fused_infer_attention_score documents for a cache in blocks.
_UNIT = 16
_MAX_HEAD_DIM = 512
_MAX_BLOCK_SIZE = 512


def _obstacle(device: torch.device, dtype: torch.dtype, names: tuple[str, ...]) -> str | None:
    if device.type != "npu":
        return f"torch_npu's operators run on Ascend devices, this model is on {device.type}"
    if dtype not in _DTYPES:
        return f"torch_npu's operators take fp16 and bf16, not {str(dtype).removeprefix('torch.')}"
    try:
        package = importlib.import_module("torch_npu")
    except ImportError as error:
        return f"torch_npu does not import ({error})"
    missing = [name for name in names if not hasattr(package, name)]
    return f"this torch_npu has no {', '.join(missing)}" if missing else None


def fused_kernels(device: torch.device, dtype: torch.dtype, width: int) -> FusedKernels | str:
    """The operators for models of `dtype` and hidden size `width`, or why they cannot run."""
    del width  # any
    obstacle = _obstacle(device, dtype, _FUSED)
    return obstacle or FusedKernels(
        name="torch_npu",
        rms_norm=operators.rms_norm,
        bind_linear=operators.bind_linear,
        bind_quantized=operators.bind_quantized,
        swiglu=operators.swiglu,
        recorder=None,
        reason="fused operators of torch_npu",
    )


def paged_obstacle(
    device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int, block_size: int
) -> str | None:
    """Why torch_npu's attention cannot serve a model, or None."""
    obstacle = _obstacle(device, dtype, _PAGED)
    if obstacle is None and cache_dtype != dtype:
        obstacle = f"the cache would be {str(cache_dtype).removeprefix('torch.')}, unlike the queries"
    if obstacle is None and (head_dim % _UNIT or head_dim > _MAX_HEAD_DIM):
        obstacle = f"the head dimension {head_dim} is not a multiple of {_UNIT} up to {_MAX_HEAD_DIM}"
    if obstacle is None and (block_size % _UNIT or block_size > _MAX_BLOCK_SIZE):
        obstacle = f"the block size {block_size} is not a multiple of {_UNIT} up to {_MAX_BLOCK_SIZE}"
    return obstacle


def paged_kernels() -> tuple[RopeAndStore, PagedAttentionFunction]:
    """(write into the cache, attention over it)."""
    return operators.rope_and_store, operators.paged_attention

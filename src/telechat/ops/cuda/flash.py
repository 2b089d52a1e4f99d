"""Attention through the flash-attn package, where it imports and the device, dtype and head dimension allow
it.

Imports flash-attn only when asked to bind it. Knows nothing of when it is chosen.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from telechat.errors import DeviceError

_MAX_HEAD_DIM = 256


def obstacle(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why flash-attn cannot run, or None when it can."""
    if device_type != "cuda":
        return f"flash-attn runs on CUDA devices, this model is on {device_type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn takes fp16 or bf16, this model is {str(dtype).removeprefix('torch.')}"
    if head_dim > _MAX_HEAD_DIM:
        return f"flash-attn takes head dimensions up to {_MAX_HEAD_DIM}, this model has {head_dim}"
    try:
        importlib.import_module("flash_attn")
    except ImportError as error:
        return f"flash-attn does not import ({error})"
    return None


def bind(fallback: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """Attention by flash-attn. It takes no additive mask: such calls go to `fallback`, or fail without one.

    The bound function has the contract of `telechat.ops.attention` and raises DeviceError where it fails.
    """
    flash = importlib.import_module("flash_attn").flash_attn_func

    def attend(
        q_BSHd: Tensor,
        k_BTKd: Tensor,
        v_BTKd: Tensor,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
        dropout_p: float = 0.0,
    ) -> Tensor:
        if mask is None:
            out: Tensor = flash(q_BSHd, k_BTKd, v_BTKd, dropout_p=dropout_p, causal=is_causal)
            return out
        if fallback is None:
            raise DeviceError(
                "flash-attn cannot take the mask of this batch (padding, or rows of different length).",
                hint="Use --attention auto, which sends such batches to torch's SDPA.",
            )
        return fallback(q_BSHd, k_BTKd, v_BTKd, mask=mask, dropout_p=dropout_p)

    return attend

"""Scaled dot-product attention: one contract, three forms, chosen once when a model is built.

Shapes: B batch, S query length, T key length, H query heads, K key/value heads, d head dimension.
The contract: query head h reads key/value head h // (H / K); scores are scaled by 1/sqrt(d); `mask` is
additive, [B or 1, 1, S, T], and finite (a fully masked row is uniform, never NaN); `is_causal` stands for the
square causal mask and excludes `mask`. Knows nothing of caches, positions or models.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from telechat.errors import DeviceError

AttentionFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class AttentionChoice:
    """An attention form bound to a model: its name, the function, and why it was chosen."""

    name: str
    function: AttentionFunction
    reason: str


def reference_attention(
    q_BSHd: Tensor,
    k_BTKd: Tensor,
    v_BTKd: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention in plain torch with the softmax in fp32. Returns [B, S, H, d] in the query's dtype."""
    groups = q_BSHd.shape[2] // k_BTKd.shape[2]
    keys = k_BTKd.repeat_interleave(groups, dim=2)
    values = v_BTKd.repeat_interleave(groups, dim=2)
    scores = torch.einsum("bshd,bthd->bhst", q_BSHd, keys) / math.sqrt(q_BSHd.shape[-1])
    if is_causal:
        mask = causal_mask(q_BSHd.shape[1], scores.dtype, scores.device)
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores.float(), dim=-1).to(q_BSHd.dtype)
    weights = F.dropout(weights, dropout_p, training=dropout_p > 0)
    return torch.einsum("bhst,bthd->bshd", weights, values)


def sdpa_attention(
    q_BSHd: Tensor,
    k_BTKd: Tensor,
    v_BTKd: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention through torch's fused `scaled_dot_product_attention`. Same contract as the reference."""
    out = F.scaled_dot_product_attention(
        q_BSHd.transpose(1, 2),
        k_BTKd.transpose(1, 2),
        v_BTKd.transpose(1, 2),
        attn_mask=mask,
        is_causal=is_causal,
        dropout_p=dropout_p,
        enable_gqa=q_BSHd.shape[2] != k_BTKd.shape[2],
    )
    return out.transpose(1, 2)


def _flash_attention(fallback: AttentionFunction | None) -> AttentionFunction:
    """Bind flash-attn. It takes no additive mask: such calls go to `fallback`, or fail when there is none."""
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
                "flash-attn cannot take the padding mask of this batch.",
                hint="Use --attention auto, which sends padded batches to torch's SDPA.",
            )
        return fallback(q_BSHd, k_BTKd, v_BTKd, mask=mask, dropout_p=dropout_p)

    return attend


def causal_mask(length: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Additive square causal mask [1, 1, length, length] with the dtype's most negative finite value."""
    mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
    return mask.triu(1)[None, None]


def _flash_obstacle(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why flash-attn cannot run, or None when it can."""
    if device_type != "cuda":
        return f"flash-attn runs on CUDA devices, this model is on {device_type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn takes fp16 or bf16, this model is {str(dtype).removeprefix('torch.')}"
    if head_dim > 256:
        return f"flash-attn takes head dimensions up to 256, this model has {head_dim}"
    try:
        importlib.import_module("flash_attn")
    except ImportError as error:
        return f"flash-attn does not import ({error})"
    return None


def choose_attention(name: str, *, device_type: str, dtype: torch.dtype, head_dim: int) -> AttentionChoice:
    """Choose the attention form for a model.

    Args:
        name: `auto`, `flash`, `sdpa` or `reference`. `auto` takes flash-attn where it can run, else SDPA.
        device_type: torch device type, e.g. `cpu`.
        dtype: dtype of the activations.
        head_dim: dimension of one head.

    Raises:
        DeviceError: the form asked for by name cannot run here, or the name is unknown.
    """
    if name == "reference":
        return AttentionChoice("reference", reference_attention, "asked for by name")
    if name == "sdpa":
        return AttentionChoice("sdpa", sdpa_attention, "asked for by name")
    if name not in ("auto", "flash"):
        raise DeviceError(f"Unknown attention '{name}'.", hint="Choose auto, flash, sdpa or reference.")
    obstacle = _flash_obstacle(device_type, dtype, head_dim)
    if name == "flash":
        if obstacle:
            raise DeviceError(f"--attention flash cannot run: {obstacle}.", hint="Use --attention auto.")
        return AttentionChoice("flash", _flash_attention(None), "asked for by name")
    if obstacle:
        return AttentionChoice("sdpa", sdpa_attention, obstacle)
    return AttentionChoice("flash", _flash_attention(sdpa_attention), "flash-attn imports and the device can")

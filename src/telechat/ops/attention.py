"""Scaled dot-product attention: one contract, three forms, chosen once when a model is built.

Shapes: B batch, S query length, T key length, H query heads, K key/value heads, d head dimension.
The contract: query head h reads key/value head h // (H / K); scores are scaled by 1/sqrt(d); `mask` is
additive, [B or 1, 1, S, T], and finite (a fully masked row is uniform, never NaN); `is_causal` stands for the
square causal mask and excludes `mask`. Knows nothing of caches, positions or models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from telechat.errors import DeviceError
from telechat.ops.cuda import flash

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
    scores = torch.einsum("bshd,bthd->bhst", q_BSHd, keys).float() / math.sqrt(q_BSHd.shape[-1])
    if is_causal:
        mask = causal_mask(q_BSHd.shape[1], scores.dtype, scores.device)
    if mask is not None:
        # In fp32: in fp16 the sum of a score and the mask can be -inf, and a row of those is NaN.
        scores = scores + mask.float()
    weights = torch.softmax(scores, dim=-1).to(q_BSHd.dtype)
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


def causal_mask(length: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Additive square causal mask [1, 1, length, length] with the dtype's most negative finite value."""
    mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
    return mask.triu(1)[None, None]


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
    obstacle = flash.obstacle(device_type, dtype, head_dim)
    if name == "flash":
        if obstacle:
            raise DeviceError(f"--attention flash cannot run: {obstacle}.", hint="Use --attention auto.")
        return AttentionChoice("flash", flash.bind(None), "asked for by name")
    if obstacle:
        return AttentionChoice("sdpa", sdpa_attention, obstacle)
    return AttentionChoice("flash", flash.bind(sdpa_attention), "flash-attn imports and the device can")

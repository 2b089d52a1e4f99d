"""A training batch through the decoder: rotary rows, the mask between packed conversations, hidden states.

Knows nothing of losses, optimisers or ranks. Shapes: B rows, S positions, d head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from telechat.layers.attention import AttentionInputs
from telechat.layers.rotary import RotaryTables
from telechat.models import TeleChatModel, Trace
from telechat.train.batch import PADDING_SEGMENT, Batch


def hidden_states(model: TeleChatModel, batch: Batch, *, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Final hidden states [B, S, hidden] and, in training, the load-balancing loss [] of a mixture's layers.

    Args:
        batch: on the model's device.
        dtype: what queries and keys are computed in, under autocast or not.
    """
    inputs = attention_inputs(model.rotary, batch, dtype=dtype)
    trace = Trace() if model.config.moe and model.training else None
    hidden: Tensor = model.transformer(batch.ids, inputs, None, trace)
    if trace is None:
        return hidden, None
    return hidden, torch.stack([routing.aux_loss for routing in trace.routings]).sum()


def attention_inputs(rotary: RotaryTables, batch: Batch, *, dtype: torch.dtype) -> AttentionInputs:
    """What every layer shares. Padding stands at a row's end, where causality hides it from real tokens.

    No conversation is longer than the training length, so one rotary table serves all.
    """
    cos, sin = rotary.rows(batch.positions, rotary.settings.training_length)
    is_real = batch.segments != PADDING_SEGMENT
    if not batch.is_packed:
        return AttentionInputs(cos, sin, None, is_causal=batch.ids.shape[1] > 1, is_real=is_real)
    return AttentionInputs(cos, sin, segment_mask(batch.segments, dtype), is_causal=False, is_real=is_real)


def segment_mask(segments_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, S, S]: a token sees itself and earlier tokens of its own conversation."""
    S = segments_BS.shape[1]
    seen = segments_BS[:, :, None] == segments_BS[:, None, :]
    seen &= torch.ones(S, S, dtype=torch.bool, device=segments_BS.device).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=segments_BS.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

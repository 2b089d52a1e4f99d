"""Making a model: its modules without weights, and fresh weights for training.

Knows nothing of files; `checkpoint` fills a model with weights of its own.
"""

from __future__ import annotations

import logging

import torch
from torch import nn

from telechat.layers.moe import Router
from telechat.layers.norm import RMSNorm
from telechat.models.config import TeleChatConfig
from telechat.models.decoder import RopeMode, TeleChatModel
from telechat.ops.attention import choose_attention

log = logging.getLogger(__name__)


def build_model(
    config: TeleChatConfig,
    *,
    device: torch.device | str = "cpu",
    target: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
    rope_mode: RopeMode = "official",
    static_length: int | None = None,
) -> TeleChatModel:
    """An uninitialised model on `device` (`meta` allocates nothing). The attention form is chosen here, once.

    Args:
        target: where a model built on `meta` will run; the attention form is chosen for it. `device` when
            None.

    Raises:
        DeviceError: an attention form asked for by name cannot run.
    """
    place = torch.device(device)
    runs_on = torch.device(target or device).type
    choice = choose_attention(attention, device_type=runs_on, dtype=dtype, head_dim=config.head_dim)
    log.info("attention: %s (%s)", choice.name, choice.reason)
    with place:
        model = TeleChatModel(
            config, attention=choice.function, rope_mode=rope_mode, static_length=static_length
        )
    model.attention_choice = choice
    return model.to(dtype)


@torch.no_grad()
def initialise(model: TeleChatModel, *, seed: int) -> None:
    """Fresh weights for training from scratch: N(0, initializer_range), biases 0, norm weights 1."""
    generator = torch.Generator(device=model.device).manual_seed(seed)
    deviation = model.config.initializer_range
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | Router):
            module.weight.normal_(0.0, deviation, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, RMSNorm):
            module.weight.fill_(1.0)

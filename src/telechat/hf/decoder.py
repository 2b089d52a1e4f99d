"""Our decoder as a guest in a transformers model, which owns the parameters and decides where they live.

Differences from a decoder that stands alone: the head belongs to the host; the attention form is chosen at
the first call, because the host moves parameters after building the model; and the inputs that layers share
can follow a layer to its device.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch import Tensor

from telechat.errors import ConfigError
from telechat.layers.attention import AttentionInputs
from telechat.models import TeleChatConfig, TeleChatModel
from telechat.ops.attention import AttentionChoice, choose_attention

log = logging.getLogger(__name__)

# transformers' names of attention forms and ours. None: the caller named none.
_ATTENTION = {None: "auto", "eager": "reference", "sdpa": "sdpa", "flash_attention_2": "flash"}


def attention_name(asked: str | None) -> str:
    """Our name of an `attn_implementation`.

    Raises:
        ConfigError: we do not have it.
    """
    if asked not in _ATTENTION:
        known = ", ".join(name for name in _ATTENTION if name)
        raise ConfigError(f"attn_implementation is {asked!r}; TeleChat has {known}.", hint="Choose one.")
    return _ATTENTION[asked]


class LateAttention:
    """An attention function that chooses its form once for each device type and dtype it meets.

    Args:
        name: `auto`, `flash`, `sdpa` or `reference`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.choices: dict[tuple[str, torch.dtype], AttentionChoice] = {}

    def __call__(self, q_BSHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, **options: Any) -> Tensor:
        key = (q_BSHd.device.type, q_BSHd.dtype)
        choice = self.choices.get(key)
        if choice is None:
            device_type, dtype = key
            choice = choose_attention(
                self.name, device_type=device_type, dtype=dtype, head_dim=q_BSHd.shape[-1]
            )
            log.info("attention: %s (%s)", choice.name, choice.reason)
            self.choices[key] = choice
        return choice.function(q_BSHd, k_BTKd, v_BTKd, **options)


@dataclasses.dataclass(frozen=True)
class MovableInputs(AttentionInputs):
    """Inputs that accelerate's hooks move to the device of the layer about to run, by this very method."""

    def to(self, device: Any, non_blocking: bool = False) -> MovableInputs:
        """A copy on `device`."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        mask = None if self.mask is None else moved(self.mask)
        return MovableInputs(moved(self.cos_BSd), moved(self.sin_BSd), mask, self.is_causal)


class HostedDecoder(TeleChatModel):
    """Embedding, blocks and final norm; built without a head."""

    def __init__(self, config: TeleChatConfig, *, attention: LateAttention) -> None:
        super().__init__(config.replace(tie_word_embeddings=True), attention=attention)

    @property
    def device(self) -> torch.device:
        """Where the embedding is. One that accelerate has taken off its device counts as on the CPU."""
        device = super().device
        return torch.device("cpu") if device.type == "meta" else device

    def _attention_inputs(self, *args: Any, **kwargs: Any) -> AttentionInputs:
        inputs = super()._attention_inputs(*args, **kwargs)
        return MovableInputs(inputs.cos_BSd, inputs.sin_BSd, inputs.mask, inputs.is_causal)

"""A small model of each kind for tests of the decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from telechat.layers.moe import MoeConfig
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, TeleChatModel, build_model, initialise

SMALL = TeleChatConfig(
    vocab_size=50,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_hidden_size=48,
    initializer_range=0.2,
    rope=RopeSettings(base_length=16, training_length=16),
)
MIXTURE = SMALL.replace(moe=MoeConfig(num_experts=4, num_experts_per_token=2))
KINDS = {
    "grouped": SMALL,
    "tied": SMALL.replace(tie_word_embeddings=True, num_kv_heads=4),
    "embedding norm": SMALL.replace(embed_layernorm=True, num_kv_heads=1),
    "residual after norm": SMALL.replace(residual_post_layernorm=True),
    "mixture": MIXTURE,
}


def small_model(config: TeleChatConfig = SMALL, **options: Any) -> TeleChatModel:
    model = build_model(config, **options)
    initialise(model, seed=0)
    return model.eval()


def tokens(B: int, S: int, seed: int = 0) -> Tensor:
    return torch.randint(SMALL.vocab_size, (B, S), generator=torch.Generator().manual_seed(seed))

"""Small models of every kind, saved as official folders."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from telechat.checkpoint import save_model
from telechat.checkpoint.hub import demo_folder
from telechat.layers.moe import MoeConfig
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, TeleChatModel, build_model

DENSE = TeleChatConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_hidden_size=48,
    rope=RopeSettings(base_length=64, training_length=64),
    seq_length=64,
)
KINDS = {
    "dense": DENSE,
    "tied": DENSE.replace(tie_word_embeddings=True, num_kv_heads=4),
    "mixture": DENSE.replace(moe=MoeConfig(num_experts=4, num_experts_per_token=2), ffn_hidden_size=24),
    "stretched": DENSE.replace(rope=replace(DENSE.rope, base_length=32), norm_eps=1e-8),
}


def random_model(config: TeleChatConfig, seed: int = 0) -> TeleChatModel:
    """Every tensor random, biases and norms too."""
    model = build_model(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


def model_folder(folder: Path, config: TeleChatConfig = DENSE, *, dtype: torch.dtype = torch.float32) -> Path:
    """An official folder with random weights; returns it."""
    save_model(random_model(config), folder, dtype=dtype)
    return folder


def with_tokenizer(folder: Path) -> Path:
    """The folder with the demo model's tokenizer in it."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(demo_folder() / name, folder / name)
    return folder

"""A very small random model folder with a tokenizer of its own, for tests that need something to load."""

from __future__ import annotations

import json
from pathlib import Path

TEXTS = [
    "生抽与老抽的区别？颜色、味道、用途。",
    "hello world, this is a small vocabulary",
    "鸡兔同笼 35 94 12",
]
CONTEXT = 1024


def make_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Write config, generation_config, tokenizer and random weights into `folder`; returns it."""
    from telechat.checkpoint import save_model
    from telechat.layers.rotary import RopeSettings
    from telechat.models import TeleChatConfig, build_model, initialise
    from telechat.tokenizer.train import train_tokenizer

    train_tokenizer(TEXTS * 3, vocab_size=300, out_folder=folder)
    config = TeleChatConfig(
        vocab_size=300,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        ffn_hidden_size=48,
        initializer_range=0.2,
        seq_length=CONTEXT,
        rope=RopeSettings(base_length=CONTEXT, training_length=CONTEXT),
    )
    model = build_model(config)
    initialise(model, seed=seed)
    save_model(model, folder)
    generation = {
        "do_sample": False,
        "max_length": 512,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 3,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder

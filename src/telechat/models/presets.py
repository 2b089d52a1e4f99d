"""The published TeleChat sizes by name."""

from __future__ import annotations

from telechat.errors import ConfigError
from telechat.layers.moe import MoeConfig
from telechat.layers.rotary import RopeSettings
from telechat.models.config import TeleChatConfig


def _telechat1(hidden: int, layers: int, vocab: int, *, tied: bool, **extra: float) -> TeleChatConfig:
    return TeleChatConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=32,
        num_kv_heads=32,
        ffn_hidden_size=12288,
        tie_word_embeddings=tied,
        rope=RopeSettings(base_length=4096 if tied else 8192),
        **extra,  # type: ignore[arg-type]
    )


def _telechat2(
    hidden: int, layers: int, heads: int, ffn: int, *, kv_heads: int = 0, **extra: object
) -> TeleChatConfig:
    return TeleChatConfig(
        vocab_size=131072,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads or heads,
        ffn_hidden_size=ffn,
        **extra,  # type: ignore[arg-type]
    )


PRESETS: dict[str, TeleChatConfig] = {
    "telechat-7b": _telechat1(4096, 30, 160256, tied=True, hidden_dropout=0.1, attention_dropout=0.1),
    "telechat-12b": _telechat1(5120, 38, 120000, tied=False),
    "telechat-12b-v2": _telechat1(5120, 38, 120000, tied=False),
    "telechat2-3b": _telechat2(3072, 24, 24, 6144),
    "telechat2-7b": _telechat2(4096, 30, 32, 12288),
    "telechat2-35b": _telechat2(6144, 64, 48, 20480),
    "telechat2-115b": _telechat2(8192, 96, 64, 40960, kv_heads=8, norm_eps=1e-8),
    "telechat2-39b-a12b": _telechat2(
        4096, 30, 32, 6144, moe=MoeConfig(num_experts=16, num_experts_per_token=4)
    ),
}


def preset(name: str) -> TeleChatConfig:
    """The configuration of a published size.

    Raises:
        ConfigError: unknown name; lists the known ones.
    """
    if name not in PRESETS:
        raise ConfigError(f"Unknown preset '{name}'.", hint=f"Known: {', '.join(PRESETS)}.")
    return PRESETS[name]


def published_size(name: str) -> TeleChatConfig | None:
    """The configuration of a published size by its name or its id on a hub; None for any other name."""
    return PRESETS.get(name.rpartition("/")[2].lower())

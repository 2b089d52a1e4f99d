"""Random adapters for tests."""

from __future__ import annotations

import torch

from telechat.checkpoint.adapter import Adapter, LowRank, adaptable_layers
from telechat.checkpoint.adapter_config import AdapterConfig
from telechat.models import TeleChatConfig

ALL_LAYERS = ("query", "key_value", "dense", "gate_proj", "up_proj", "down_proj")


def random_adapter(
    config: TeleChatConfig,
    *,
    seed: int = 0,
    size: float = 0.3,
    settings: AdapterConfig | None = None,
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """An adapter of all layers that `settings` names, strong enough to change what a model says."""
    settings = settings or AdapterConfig(r=4, lora_alpha=8, target_modules=ALL_LAYERS)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * size).to(dtype)

    modules = {}
    for name, (width_out, width_in) in adaptable_layers(config).items():
        if settings.targets(name):
            rank = settings.rank(name)
            magnitude = draw(width_out).abs() + 0.5 if settings.use_dora else None
            modules[name] = LowRank(draw(rank, width_in), draw(width_out, rank), magnitude)
    return Adapter(settings, modules)

"""The parameter table: every tensor of a model, described once.

Tensor parallelism, resharding, quantisation, LoRA and all file formats read this table. Axes are logical:
`vocab`, `hidden`, `heads` (query heads times head_dim), `kv_heads` (key/value heads, each with its key rows
and then its value rows), `ffn`, `experts`. Knows nothing of tensors' values or devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from telechat.models.config import TeleChatConfig

Kind = Literal["embedding", "norm", "linear", "bias", "router", "head"]


@dataclass(frozen=True)
class Parameter:
    """One tensor: official name, shape, a logical axis per dimension, and what it is."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    kind: Kind

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def parameter_table(config: TeleChatConfig) -> tuple[Parameter, ...]:
    """All parameters in module order under their official names with the `transformer.` prefix."""
    extents = {
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "heads": config.num_heads * config.head_dim,
        "kv_heads": 2 * config.num_kv_heads * config.head_dim,
        "ffn": config.ffn_hidden_size,
        "experts": config.moe.num_experts if config.moe else 1,
    }
    table: list[Parameter] = []

    def add(name: str, kind: Kind, *axes: str) -> None:
        table.append(Parameter(name, tuple(extents[axis] for axis in axes), axes, kind))

    add("transformer.word_embeddings.weight", "embedding", "vocab", "hidden")
    if config.embed_layernorm:
        add("transformer.word_embeddings_layernorm.weight", "norm", "hidden")
    for layer in range(config.num_layers):
        block = f"transformer.h.{layer}"
        add(f"{block}.input_layernorm.weight", "norm", "hidden")
        add(f"{block}.self_attention.query.weight", "linear", "heads", "hidden")
        add(f"{block}.self_attention.key_value.weight", "linear", "kv_heads", "hidden")
        add(f"{block}.self_attention.dense.weight", "linear", "hidden", "heads")
        add(f"{block}.self_attention.dense.bias", "bias", "hidden")
        add(f"{block}.post_attention_layernorm.weight", "norm", "hidden")
        feed_forwards = [f"{block}.mlp"]
        if config.moe:
            add(f"{block}.mlp.router.weight", "router", "experts", "hidden")
            feed_forwards = [f"{block}.mlp.local_experts.{e}" for e in range(config.moe.num_experts)]
        for feed_forward in feed_forwards:
            add(f"{feed_forward}.gate_proj.weight", "linear", "ffn", "hidden")
            add(f"{feed_forward}.up_proj.weight", "linear", "ffn", "hidden")
            add(f"{feed_forward}.down_proj.weight", "linear", "hidden", "ffn")
            add(f"{feed_forward}.down_proj.bias", "bias", "hidden")
    add("transformer.ln_f.weight", "norm", "hidden")
    if not config.tie_word_embeddings:
        add("lm_head.weight", "head", "vocab", "hidden")
    return tuple(table)


def count_parameters(config: TeleChatConfig) -> int:
    """Total number of parameters."""
    return sum(parameter.size for parameter in parameter_table(config))


def count_active_parameters(config: TeleChatConfig) -> int:
    """Parameters that one token passes through: all of a dense model, the chosen experts of a mixture."""
    if not config.moe:
        return count_parameters(config)
    idle = config.moe.num_experts - config.moe.num_experts_per_token
    expert = 3 * config.hidden_size * config.ffn_hidden_size + config.hidden_size
    return count_parameters(config) - config.num_layers * idle * expert

"""Adapters between the two spellings: `key_value` joined from, and split into, `k_proj` and `v_proj`.

Rows of `key_value` are, for each key/value head, those of the key and then those of the value. Splitting B by
rows keeps A, so both halves share it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from telechat.checkpoint.adapter import Adapter, LowRank, adaptable_layers
from telechat.checkpoint.adapter_config import AdapterConfig
from telechat.checkpoint.adapter_names import Part, llama_modules
from telechat.errors import CheckpointError
from telechat.models import TeleChatConfig


def join_halves(
    name: str, parts: Mapping[Part, LowRank], scales: Mapping[Part, float], config: TeleChatConfig
) -> LowRank:
    """`key_value` from what was trained for keys and for values; the first one's scale holds for both.

    Where both halves have one A, so has the whole; else the ranks add up. A half that the adapter leaves
    alone gets zeros.
    """
    lengths = [low_rank.magnitude for low_rank in parts.values() if low_rank.magnitude is not None]
    if lengths and len(parts) == 1:
        raise CheckpointError(
            f"The adapter is a DoRA of only one half of {name}.", hint="Train k_proj and v_proj together."
        )
    scale = next(iter(scales.values()))
    matrices = [low_rank.a for low_rank in parts.values()]
    is_shared = all(torch.equal(a, matrices[0]) for a in matrices)
    width = config.num_kv_heads * config.head_dim
    rank = len(matrices[0]) if is_shared else sum(len(a) for a in matrices)
    halves = {part: matrices[0].new_zeros(width, rank) for part in ("key", "value")}
    column = 0
    for part, low_rank in parts.items():
        scaled = low_rank.b if scales[part] == scale else low_rank.b * (scales[part] / scale)
        halves[part][:, column : column + len(low_rank.a)] = scaled
        column += 0 if is_shared else len(low_rank.a)
    a = matrices[0] if is_shared else torch.cat(matrices)
    b = _interleave(halves["key"], halves["value"], config)
    magnitude = None
    if lengths:
        by_part = [low_rank.magnitude for low_rank in (parts["key"], parts["value"])]
        assert by_part[0] is not None and by_part[1] is not None
        magnitude = _interleave(by_part[0], by_part[1], config)
    return LowRank(a, b, magnitude)


def _interleave(keys: Tensor, values: Tensor, config: TeleChatConfig) -> Tensor:
    """Rows of keys and of values, both [kv_heads * head_dim, ...], side by side for each head."""
    heads, rest = (config.num_kv_heads, config.head_dim), keys.shape[1:]
    pair = torch.stack([keys.reshape(*heads, *rest), values.reshape(*heads, *rest)], dim=1)
    return pair.reshape(2 * len(keys), *rest)


def _part_rows(tensor: Tensor, part: Part, config: TeleChatConfig) -> Tensor:
    """Of a `key_value` tensor [2 * kv_heads * head_dim, ...], the rows of keys or of values."""
    if part == "all":
        return tensor
    pairs = tensor.reshape(config.num_kv_heads, 2, config.head_dim, *tensor.shape[1:])
    return pairs[:, 0 if part == "key" else 1].reshape(len(tensor) // 2, *tensor.shape[1:])


def llama_form(adapter: Adapter, config: TeleChatConfig) -> tuple[AdapterConfig, dict[str, LowRank]]:
    """Configuration without patterns and matrices of one rank, by Llama names."""
    rank = adapter.max_rank
    if not adapter.modules:
        raise CheckpointError("The adapter changes no layer; there is nothing to write.")
    scale = adapter.scale(next(iter(adapter.modules)))
    named: dict[str, LowRank] = {}
    for module, low_rank in adapter.modules.items():
        missing = rank - len(low_rank.a)
        a = torch.nn.functional.pad(low_rank.a, (0, 0, 0, missing))
        b = torch.nn.functional.pad(low_rank.b, (0, missing))
        if adapter.scale(module) != scale:
            b = b * (adapter.scale(module) / scale)
        magnitude = low_rank.magnitude
        for name, part in llama_modules(module):
            rows = None if magnitude is None else _part_rows(magnitude, part, config)
            named[name] = LowRank(a, _part_rows(b, part, config), rows)
    settings = dataclasses.replace(
        adapter.config,
        r=rank,
        lora_alpha=scale * (math.sqrt(rank) if adapter.config.use_rslora else rank),
        target_modules=_shortest_targets(named, config),
        rank_pattern={},
        alpha_pattern={},
    )
    return settings, named


def _shortest_targets(named: Mapping[str, LowRank], config: TeleChatConfig) -> tuple[str, ...]:
    """Ends of names where all layers with that end are changed, else whole names."""
    leaves = {name.rpartition(".")[2] for name in named}
    possible = {
        name for layer in adaptable_layers(config) if layer != "lm_head" for name, _ in llama_modules(layer)
    }
    meant = {name for name in possible if name.rpartition(".")[2] in leaves} | ({"lm_head"} & leaves)
    return tuple(sorted(leaves)) if meant == set(named) else tuple(named)

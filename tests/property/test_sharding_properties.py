"""Splitting a tensor over ranks and merging the parts is the identity, and every rank's part is its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from telechat.errors import CheckpointError, ConfigError
from telechat.layers.moe import MoeConfig
from telechat.models import TeleChatConfig, parameter_table
from telechat.parallel.sharding import Layout, check_layout, local_heads, merge, shard_of, shard_table, split

SIZES = st.sampled_from([1, 2, 4, 8])


def make_config(
    *, heads: int, kv_heads: int, vocab: int = 37, experts: int = 0, ffn: int = 16
) -> TeleChatConfig:
    return TeleChatConfig(
        vocab_size=vocab,
        hidden_size=heads * 4,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=kv_heads,
        ffn_hidden_size=ffn,
        embed_layernorm=True,
        moe=MoeConfig(num_experts=experts, num_experts_per_token=1) if experts else None,
    )


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view(shape)


@given(
    tp=SIZES,
    ep=SIZES,
    kv_heads=SIZES,
    groups=SIZES,
    vocab=st.integers(1, 99),
    experts=st.sampled_from([0, 8]),
)
def test_merging_what_was_split_is_the_identity(
    tp: int, ep: int, kv_heads: int, groups: int, vocab: int, experts: int
) -> None:
    config = make_config(heads=kv_heads * groups, kv_heads=kv_heads, vocab=vocab, experts=experts)
    layout = Layout(tp=tp, ep=ep)
    try:
        check_layout(config, layout)
    except ConfigError:
        assert config.num_heads % tp or (ep > 1 and not experts)
        return
    for parameter in parameter_table(config):
        tensor = numbered(parameter.shape)
        parts = split(tensor, parameter, config, layout)
        assert torch.equal(merge(parts, parameter, config, layout), tensor)
        for rank, part in parts.items():
            assert part.shape == shard_table(config, layout, rank)[parameter.name].shape


@pytest.mark.parametrize(("tp", "kv_heads"), [(2, 4), (4, 4), (4, 2), (8, 1), (8, 2)])
def test_query_heads_meet_their_own_key_value_heads(tp: int, kv_heads: int) -> None:
    """Each rank's query head q, counted from its first, uses local key/value head q // group."""
    config = make_config(heads=8, kv_heads=kv_heads)
    table = {parameter.name: parameter for parameter in parameter_table(config)}
    query = table["transformer.h.0.self_attention.query.weight"]
    key_value = table["transformer.h.0.self_attention.key_value.weight"]
    for rank in range(tp):
        heads, local_kv = local_heads(config, Layout(tp=tp))
        q = shard_of(query, config, Layout(tp=tp), rank)
        kv = shard_of(key_value, config, Layout(tp=tp), rank)
        assert q is not None and kv is not None
        for head in range(heads):
            whole_head = q.start // config.head_dim + head
            wanted = whole_head // (config.num_heads // kv_heads)
            assert kv.start // (2 * config.head_dim) + head // (heads // local_kv) == wanted


def test_every_expert_is_held_once_or_by_those_who_share_its_width() -> None:
    config = make_config(heads=4, kv_heads=4, experts=8)
    for tp, ep, holders in ((1, 4, 1), (4, 4, 1), (4, 2, 2), (2, 4, 1), (4, 1, 4)):
        layout = Layout(tp=tp, ep=ep)
        tables = [shard_table(config, layout, rank) for rank in range(layout.world_size)]
        for expert in range(8):
            name = f"transformer.h.0.mlp.local_experts.{expert}.gate_proj.weight"
            held = [table[name].shape for table in tables if name in table]
            assert held == [(16 // holders, 16)] * holders
        assert all(table["transformer.h.0.mlp.router.weight"].shape == (8, 16) for table in tables)


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        (make_config(heads=6, kv_heads=6), Layout(tp=4), "6 attention heads cannot be shared by 4 ranks"),
        (make_config(heads=12, kv_heads=6), Layout(tp=4), "6 key/value heads can neither"),
        (make_config(heads=4, kv_heads=4, experts=6), Layout(ep=4), "6 experts cannot be shared by 4 ranks"),
        (make_config(heads=4, kv_heads=4), Layout(ep=2), "ep is 2, but this model has no experts"),
        (make_config(heads=4, kv_heads=4, ffn=18), Layout(tp=4), "inner width of 18 cannot be shared by 4"),
    ],
)
def test_what_does_not_divide_is_refused_with_both_numbers(
    config: TeleChatConfig, layout: Layout, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_layout(config, layout)


@pytest.mark.parametrize(("tp", "ep"), [(2, 3), (0, 1), (4, 6)])
def test_layouts_that_cannot_be(tp: int, ep: int) -> None:
    with pytest.raises(ConfigError):
        Layout(tp=tp, ep=ep)


def test_parts_that_are_missing_misshapen_or_disagree_are_refused() -> None:
    config = make_config(heads=4, kv_heads=1)
    layout = Layout(tp=2)
    table = {parameter.name: parameter for parameter in parameter_table(config)}
    shared = table["transformer.h.0.self_attention.key_value.weight"]  # one head, copied to both ranks
    parts = split(numbered(shared.shape), shared, config, layout)
    with pytest.raises(CheckpointError, match="ranks 0 and 1 hold different copies"):
        merge({0: parts[0], 1: parts[1] + 1}, shared, config, layout)
    with pytest.raises(CheckpointError, match="part of rank 1 is missing"):
        merge({0: parts[0]}, shared, config, layout)
    query = table["transformer.h.0.self_attention.query.weight"]
    parts = split(numbered(query.shape), query, config, layout)
    with pytest.raises(CheckpointError, match=r"rank 1 has shape \[4, 16\]"):
        merge({0: parts[0], 1: parts[1][:4]}, query, config, layout)

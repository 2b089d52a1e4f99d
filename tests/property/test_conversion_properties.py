"""Whatever the model and the layout: there and back, cut and joined, nothing changes."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from telechat.checkpoint.formats.convert import ConvertOptions, convert
from telechat.checkpoint.formats.lazy import HeldTensor, LazyTensor
from telechat.checkpoint.formats.opening import open_checkpoint
from telechat.checkpoint.formats.table import Checkpoint
from telechat.checkpoint.mindspore.container import as_values
from telechat.checkpoint.mindspore.layouts import ParallelLayout, strategy_of
from telechat.checkpoint.mindspore.naming import Layout, arranged, from_mindspore, to_mindspore
from telechat.checkpoint.mindspore.slicing import merge, split, without_pieces
from telechat.checkpoint.mindspore.strategy import read_strategy, strategy_files
from telechat.errors import CheckpointError
from telechat.layers.moe import MoeConfig
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, parameter_table

few = settings(max_examples=25, deadline=None)
FORMATS = ("hf", "llama", "mindspore", "dcp")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@st.composite
def configs(draw: st.DrawFn) -> TeleChatConfig:
    num_kv_heads = draw(st.sampled_from([1, 2, 4, 8]))
    num_heads = num_kv_heads * draw(st.sampled_from([1, 2, 3]))
    experts = draw(st.none() | st.sampled_from([2, 4]))
    hidden = num_heads * draw(st.sampled_from([4, 6]))  # a head of 2 has no stretched rotary base
    ffn = 8 * draw(st.integers(1, 3))
    # Whether experts are transposed cannot be told where both widths are alike, in a slice neither.
    assume(not experts or all(ffn != hidden * shares for shares in (1, 2, 4, 8)))
    return TeleChatConfig(
        vocab_size=draw(st.integers(4, 40)),
        hidden_size=hidden,
        num_layers=draw(st.integers(1, 3)),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        ffn_hidden_size=ffn,
        norm_eps=draw(st.sampled_from([1e-5, 1e-8])),
        tie_word_embeddings=draw(st.booleans()),
        rope=RopeSettings(base_length=draw(st.sampled_from([32, 64])), training_length=64),
        seq_length=64,
        moe=MoeConfig(num_experts=experts, num_experts_per_token=1) if experts else None,
    )


@st.composite
def layouts(draw: st.DrawFn) -> ParallelLayout:
    """Up to eight ranks."""
    mp = draw(st.sampled_from([1, 2, 4, 8]))
    pp = draw(st.sampled_from([count for count in (1, 2) if mp * count <= 8]))
    dp = draw(st.sampled_from([count for count in (1, 2, 4) if mp * pp * count <= 8]))
    ep = draw(st.sampled_from([count for count in (1, 2) if dp % count == 0]))
    return ParallelLayout(dp=dp, mp=mp, pp=pp, ep=ep, shard_optimizer=draw(st.booleans()))


def tensors_of(config: TeleChatConfig, dtype: torch.dtype) -> dict[str, LazyTensor]:
    generator = torch.Generator().manual_seed(0)
    made = {p.name: torch.randn(p.shape, generator=generator) for p in parameter_table(config)}
    return {name: HeldTensor(tensor.to(dtype)) for name, tensor in made.items()}


def assert_same(found: dict[str, LazyTensor], expected: dict[str, LazyTensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name].read(), tensor.read()), name


@few
@given(configs(), st.booleans(), st.booleans())
def test_mindspore_names_and_back(config: TeleChatConfig, qkv_concat: bool, gmm: bool) -> None:
    ours = tensors_of(config, torch.float32)
    assert_same(
        from_mindspore(to_mindspore(ours, config, Layout(qkv_concat=qkv_concat, gmm=gmm)), config), ours
    )


@few
@given(configs(), layouts())
def test_split_and_merge(config: TeleChatConfig, layout: ParallelLayout) -> None:
    named = to_mindspore(tensors_of(config, torch.bfloat16), config)
    try:
        strategy = strategy_of(config, layout)
    except CheckpointError:
        assume(False)
    ranks = split(as_values(named), strategy)
    assert len(ranks) == layout.num_ranks
    merged = merge(ranks, strategy)
    assert_same({name: value.tensor for name, value in merged.items()}, named)
    whole, plain = without_pieces(ranks, strategy)
    assert_same({name: value.tensor for name, value in merge(whole, plain).items()}, named)


@few
@given(configs(), layouts())
def test_strategy_files(config: TeleChatConfig, layout: ParallelLayout) -> None:
    try:
        strategy = strategy_of(config, layout)
    except CheckpointError:
        assume(False)
    with tempfile.TemporaryDirectory() as name:
        for file, content in strategy_files(strategy).items():
            Path(name, file).write_bytes(content)
        assert read_strategy(Path(name)) == strategy


@settings(max_examples=12, deadline=None)
@given(
    configs(),
    layouts(),
    st.sampled_from(["hf", "llama", "mindspore", "dcp"]),
    st.sampled_from(DTYPES),
    st.data(),
)
def test_files_there_and_back(
    config: TeleChatConfig, layout: ParallelLayout, to: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    assume(not (to == "llama" and config.moe))
    source = Checkpoint(config=config, tensors=tensors_of(config, dtype), folder=None, format="memory")
    options = ConvertOptions()
    if to == "mindspore":
        fused = data.draw(st.booleans()) and not layout.shard_optimizer
        gmm = dtype == torch.float32 and data.draw(st.booleans()) and not layout.shard_optimizer
        options = ConvertOptions(layout=layout, qkv_concat=fused, gmm=gmm, crc=data.draw(st.booleans()))
    with tempfile.TemporaryDirectory() as name:
        target = Path(name) / "out"
        try:
            convert(source, target, to, options)
        except CheckpointError as error:
            reasons = ("cannot be shared", "no experts", "for experts", "stages")
            assert any(reason in str(error) for reason in reasons), error
            assert "for experts" not in str(error) or (options.gmm and config.moe is None)
            assert not target.exists()
            return
        found = open_checkpoint(target)
        assert found.config == config
        assert_same(found.tensors, source.tensors)


@few
@given(configs(), st.integers(0, 400), st.binary(max_size=3))
def test_a_damaged_strategy_never_crashes(config: TeleChatConfig, at: int, noise: bytes) -> None:
    [content] = {*strategy_files(strategy_of(config, ParallelLayout())).values()}
    damaged = content[:at] + noise + content[at + len(noise) :]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "s.ckpt"
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            read_strategy(path)


def test_arranged_is_lazy() -> None:
    """Nothing is read before it is written."""
    config = TeleChatConfig(
        vocab_size=8, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, ffn_hidden_size=8
    )

    class Unread(HeldTensor):
        def read_into(self, *_: object) -> None:
            pytest.fail("read too early")

    tensors = {p.name: Unread(torch.zeros(p.shape)) for p in parameter_table(config)}
    named = to_mindspore(tensors, config)
    arranged(named, config, Layout(qkv_concat=True))

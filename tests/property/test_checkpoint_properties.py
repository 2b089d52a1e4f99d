"""Whatever the model and however it is split: written and read again is the same; damaged is refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from telechat import load_model
from telechat.checkpoint import check_folder, read_config, save_model
from telechat.checkpoint.names import canonical_name, count_experts
from telechat.checkpoint.save import plan_shards
from telechat.errors import TelechatError
from telechat.layers.moe import MoeConfig
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, build_model, initialise, parameter_table

# Files are written and models built: few examples, no deadline on busy machines.
few = settings(max_examples=25, deadline=None)


@st.composite
def configs(draw: st.DrawFn) -> TeleChatConfig:
    num_kv_heads = draw(st.integers(1, 3))
    num_heads = num_kv_heads * draw(st.integers(1, 3))
    experts = draw(st.none() | st.integers(2, 5))
    return TeleChatConfig(
        vocab_size=draw(st.integers(1, 40)),
        hidden_size=num_heads * 2 * draw(st.integers(1, 3)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        ffn_hidden_size=draw(st.integers(1, 20)),
        norm_eps=draw(st.sampled_from([1e-5, 1e-8])),
        embed_layernorm=draw(st.booleans()),
        residual_post_layernorm=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        seq_length=draw(st.integers(1, 99)),
        rope=RopeSettings(
            base=draw(st.sampled_from([10000.0, 1e6])),
            base_length=draw(st.integers(1, 99)),
            training_length=draw(st.integers(1, 99)),
            table_dtype=draw(st.sampled_from(["float16", "float32"])),
        ),
        moe=MoeConfig(num_experts=experts, num_experts_per_token=2) if experts else None,
    )


@given(configs())
def test_config_round_trip(config: TeleChatConfig) -> None:
    assert TeleChatConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@given(configs(), st.integers(1, 4), st.integers(1, 5000))
def test_shards_hold_every_tensor_once(config: TeleChatConfig, itemsize: int, limit: int) -> None:
    sizes = {p.name: p.size * itemsize for p in parameter_table(config)}
    shards = plan_shards(sizes, limit)
    assert [name for names in shards.values() for name in names] == [p.name for p in parameter_table(config)]
    for names in shards.values():
        assert names
        assert len(names) == 1 or sum(sizes[name] for name in names) <= limit


@few
@given(configs(), st.integers(1, 5000), st.integers(0, 2**31))
def test_model_round_trip(config: TeleChatConfig, limit: int, seed: int) -> None:
    model = build_model(config)
    initialise(model, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder, max_shard_bytes=limit)
        loaded = load_model(folder, device="cpu")
        report = check_folder(folder)
    assert loaded.config == config
    for (name, value), other in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other[0]
        assert torch.equal(value, other[1])
    assert [problem for problem in report.problems if "tokenizer" not in problem] == []


@few
@given(configs(), st.data())
def test_any_split_in_any_layout(config: TeleChatConfig, data: st.DataObject) -> None:
    """Tensors dealt to files in any order, with and without the prefix, pickles or safetensors."""
    model = build_model(config)
    initialise(model, seed=1)
    prefix, kind = data.draw(st.booleans()), data.draw(st.sampled_from(["safetensors", "bin"]))
    tensors = {
        name if prefix else name.removeprefix("transformer."): value.detach().clone()
        for name, value in model.named_parameters()
    }
    placed = {name: f"part-{data.draw(st.integers(0, 2))}.{kind}" for name in tensors}
    index = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "config.json").write_text(json.dumps(config.to_hf()))
        (folder / index).write_text(json.dumps({"weight_map": placed}))
        for file in set(placed.values()):
            content = {name: tensors[name] for name in tensors if placed[name] == file}
            if kind == "safetensors":
                save_file(content, folder / file)
            else:
                torch.save(content, folder / file)
        loaded = load_model(folder, device="cpu")
        assert read_config(folder) == config
    for value, other in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@few
@given(data=st.data())
def test_damage_is_one_line(kind: str, data: st.DataObject) -> None:
    """Cut anywhere, or with bytes of the header changed: a message of ours on one line, or a model."""
    config = TeleChatConfig(
        vocab_size=4, hidden_size=4, num_layers=1, num_heads=1, num_kv_heads=1, ffn_hidden_size=2
    )
    model = build_model(config)
    initialise(model, seed=1)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        save_model(model, folder)
        path = folder / "model.safetensors"
        if kind == "bin":
            path.unlink()
            path = folder / "pytorch_model.bin"
            torch.save({name: value.detach() for name, value in model.named_parameters()}, path)
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        else:
            for _ in range(data.draw(st.integers(1, 4))):
                content[data.draw(st.integers(0, min(600, len(content) - 1)))] = data.draw(
                    st.integers(0, 255)
                )
        path.write_bytes(content)
        try:
            load_model(folder, device="cpu")
        except TelechatError as error:
            assert "\n" not in str(error)
        assert all("\n" not in problem for problem in check_folder(folder).problems)


@given(configs())
def test_names(config: TeleChatConfig) -> None:
    names = [parameter.name for parameter in parameter_table(config)]
    for name in names:
        assert canonical_name(name) == canonical_name(name.removeprefix("transformer.")) == name
    assert count_experts(names) == (config.moe.num_experts if config.moe else 0)

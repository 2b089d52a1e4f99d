"""Adapter folders: written and read in both spellings, merged alike, and refused with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.checkpoint.adapters import ALL_LAYERS, random_adapter
from tests.unit.checkpoint.folders import MIXTURE, TIED, TINY, random_model
from torch import Tensor

from telechat.checkpoint import Adapter, AdapterConfig, LowRank, merge_adapter, read_adapter, write_adapter
from telechat.errors import CheckpointError, ConfigError, TelechatError
from telechat.models.quantized import quantize_layers
from telechat.ops.quantized import WeightScheme

PLAIN = AdapterConfig(r=4, lora_alpha=8, target_modules=ALL_LAYERS)
KINDS = {
    "plain": PLAIN,
    "rslora": replace(PLAIN, use_rslora=True),
    "dora": replace(PLAIN, use_dora=True),
    "head": replace(PLAIN, target_modules=(*ALL_LAYERS, "lm_head")),
    "regex": replace(PLAIN, target_modules=r".*\.h\.1\.self_attention\.(query|key_value)"),
    "patterns": replace(
        PLAIN, rank_pattern={"query": 2, "h.0.mlp.up_proj": 6}, alpha_pattern={"key_value|up_proj": 3}
    ),
}
KV = "transformer.h.0.self_attention.key_value"


def merged_tensors(adapter: Adapter) -> dict[str, Tensor]:
    model = random_model()
    merge_adapter(model, adapter)
    return {name: value.detach() for name, value in model.named_parameters()}


def change_json(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, changes: dict[str, Tensor | None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors: dict[str, Tensor | None] = {**load_file(path), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_adapter(random_adapter(TINY), tmp_path / "adapter", TINY)
    return tmp_path / "adapter"


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read_again_is_the_same(kind: str, tmp_path: Path) -> None:
    adapter = random_adapter(TINY, settings=KINDS[kind])
    write_adapter(adapter, tmp_path, TINY)
    found = read_adapter(tmp_path, TINY)
    assert found.config == adapter.config
    assert list(found.modules) == list(adapter.modules)
    for name, low_rank in adapter.modules.items():
        assert torch.equal(found.modules[name].a, low_rank.a)
        assert torch.equal(found.modules[name].b, low_rank.b)


@pytest.mark.parametrize("kind", KINDS)
def test_both_spellings_merge_to_the_same_weights(kind: str, tmp_path: Path) -> None:
    adapter = random_adapter(TINY, settings=KINDS[kind])
    write_adapter(adapter, tmp_path, TINY, spelling="llama")
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not raw["rank_pattern"] and not raw["alpha_pattern"]
    expected = merged_tensors(adapter)
    found = merged_tensors(read_adapter(tmp_path, TINY))
    assert not torch.equal(
        expected[f"{KV.replace('h.0', 'h.1')}.weight"],
        random_model().get_parameter(f"{KV.replace('h.0', 'h.1')}.weight"),
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_llama_names_split_key_value_by_head(tmp_path: Path) -> None:
    """Against the rule of the export, rows of a head's key before those of its value, done here by hand."""
    adapter = random_adapter(TINY)
    write_adapter(adapter, tmp_path, TINY, spelling="llama")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    delta = adapter.delta(KV).reshape(TINY.num_kv_heads, 2, TINY.head_dim, TINY.hidden_size)
    for half, leaf in enumerate(("k_proj", "v_proj")):
        name = f"base_model.model.model.layers.0.self_attn.{leaf}"
        product = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] * 2
        torch.testing.assert_close(product, delta[:, half].reshape(-1, TINY.hidden_size))
        assert torch.equal(tensors[f"{name}.lora_A.weight"], adapter.modules[KV].a)
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert targets == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def write_llama(folder: Path, tensors: dict[str, Tensor], **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    raw = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["k_proj", "v_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    prefix = "base_model.model.model.layers.0.self_attn."
    save_file({prefix + name: value for name, value in tensors.items()}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("leaves", [("k_proj", "v_proj"), ("v_proj",), ("k_proj",)])
def test_halves_trained_apart_become_one_layer(leaves: tuple[str, ...], tmp_path: Path) -> None:
    width, ranks = TINY.hidden_size // 2, {"k_proj": 3, "v_proj": 2}
    tensors = {}
    for leaf in leaves:
        tensors[f"{leaf}.lora_A.weight"] = torch.randn(ranks[leaf], TINY.hidden_size)
        tensors[f"{leaf}.lora_B.weight"] = torch.randn(width, ranks[leaf])
    write_llama(tmp_path, tensors, rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 5})
    adapter = read_adapter(tmp_path, TINY)
    expected = torch.zeros(TINY.num_kv_heads, 2, TINY.head_dim, TINY.hidden_size)
    for leaf in leaves:
        half, scale = (0, 6 / 3) if leaf == "k_proj" else (1, 5 / 2)
        product = tensors[f"{leaf}.lora_B.weight"] @ tensors[f"{leaf}.lora_A.weight"] * scale
        expected[:, half] = product.reshape(TINY.num_kv_heads, TINY.head_dim, -1)
    torch.testing.assert_close(adapter.delta(KV), expected.reshape(2 * width, -1))
    # And what was joined can be written with official names.
    write_adapter(adapter, tmp_path / "official", TINY)
    again = read_adapter(tmp_path / "official", TINY)
    torch.testing.assert_close(again.delta(KV), adapter.delta(KV))


def test_a_dora_keeps_the_length_of_rows() -> None:
    adapter = random_adapter(TINY, settings=KINDS["dora"])
    rows = merged_tensors(adapter)[f"{KV}.weight"]
    torch.testing.assert_close(rows.norm(dim=1), adapter.modules[KV].magnitude)


def test_names_without_the_prefix_as_the_7b_has_them(folder: Path, tmp_path: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name.replace("model.transformer.", "model."): value for name, value in tensors.items()}, path)
    found, expected = read_adapter(folder, TINY), random_adapter(TINY)
    for name in expected.modules:
        torch.testing.assert_close(found.delta(name), expected.delta(name))


def test_bin_files_are_read(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    assert torch.equal(read_adapter(folder, TINY).modules[KV].a, random_adapter(TINY).modules[KV].a)


def test_experts_have_adapters_but_no_llama_names(tmp_path: Path) -> None:
    adapter = random_adapter(MIXTURE)
    write_adapter(adapter, tmp_path, MIXTURE)
    assert "transformer.h.1.mlp.local_experts.3.up_proj" in read_adapter(tmp_path, MIXTURE).modules
    with pytest.raises(CheckpointError, match="no Llama name"):
        write_adapter(adapter, tmp_path, MIXTURE, spelling="llama")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"bias": "all"}, "bias 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"never_heard_of": 1}, "never_heard_of 1"),
        ({"r": 0}, "rank r is 0"),
        ({"r": "8"}, "rank r is '8'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"target_modules": None}, "target_modules None"),
        ({"target_modules": "(", "r": 4}, "not a regular expression"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"r": 5}, r"has shape \[4, \d+\].*ask for \[5, \d+\]"),
        ({"use_dora": True}, "lacks .*lora_magnitude_vector"),
    ],
)
def test_settings_that_cannot_be_obeyed_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    change_json(folder, **changes)
    with pytest.raises(TelechatError, match=message):
        read_adapter(folder, TINY)


A = f"base_model.model.{KV}.lora_A.weight"
B = A.replace("lora_A", "lora_B")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({A: None}, "lacks .*lora_A"),
        ({A: torch.full((4, 16), torch.inf)}, "not finite"),
        ({A: torch.full((4, 16), torch.nan)}, "not finite"),
        ({A: torch.zeros(4, 17)}, r"shape \[4, 17\]"),
        ({A: torch.zeros(4, 16, dtype=torch.int32)}, "dtype"),
        ({A.replace("h.0", "h.7"): torch.zeros(4, 16)}, "h.7.self_attention.key_value.* 2 layers"),
        ({A.replace("lora_A", "lora_embedding_A"): torch.zeros(4, 16)}, "no tensor of a low-rank adapter"),
        ({"base_model.model.model.layers.0.mlp.experts.lora_A.weight": torch.zeros(4, 16)}, "no such layer"),
        (
            {
                A.replace("model.transformer.", "model."): torch.zeros(4, 16),
                B.replace("model.transformer.", "model."): torch.zeros(16, 4),
            },
            "twice",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    folder: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    change_tensors(folder, changes)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(folder, TINY)


def test_a_rank_beyond_the_limit_is_refused(folder: Path) -> None:
    read_adapter(folder, TINY, max_rank=4)
    with pytest.raises(CheckpointError, match="rank 4; at most 3"):
        read_adapter(folder, TINY, max_rank=3)


def test_missing_files_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no adapter_config.json"):
        read_adapter(tmp_path, TINY)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no adapter"):
        read_adapter(folder, TINY)


def test_an_adapter_of_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="shape"):
        read_adapter(folder, TINY.replace(ffn_hidden_size=32))
    head = random_adapter(TINY, settings=KINDS["head"])
    with pytest.raises(CheckpointError, match="lm_head"):
        merge_adapter(random_model(TIED), head)
    crooked = Adapter(PLAIN, {KV: LowRank(torch.zeros(4, 9), torch.zeros(16, 4))})
    with pytest.raises(CheckpointError, match="lora_A"):
        write_adapter(crooked, folder, TINY)


def test_quantised_weights_are_not_merged_into() -> None:
    model = random_model(TINY.replace(hidden_size=32, ffn_hidden_size=32))
    quantize_layers(model, WeightScheme.named("int8", 32))
    with pytest.raises(CheckpointError, match="quantised"):
        merge_adapter(model, random_adapter(model.config))

"""config.json: official spellings, defaults, aliases, and one-line errors for wrong values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from telechat.errors import ConfigError
from telechat.layers.moe import MoeConfig
from telechat.layers.rotary import RopeSettings
from telechat.models import PRESETS, TeleChatConfig, preset

OFFICIAL = {"architectures": ["TelechatForCausalLM"], "model_type": "telechat"}


def read(**fields: Any) -> TeleChatConfig:
    return TeleChatConfig.from_hf({**OFFICIAL, **fields})


@pytest.mark.parametrize(
    "name",
    [
        "TelechatForCausalLM",
        "TeleChatForCausalLM",
        "Telechat2ForCausalLM",
        "TeleChat2ForCausalLM",
        "TELECHAT2FORCAUSALLM",
        "TeleChat12BForCausalLM",
    ],
)
def test_class_names(name: str) -> None:
    assert TeleChatConfig.from_hf({"architectures": [name]}) == read()
    assert TeleChatConfig.from_hf({"architectures": name}) == read()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "describes LlamaForCausalLM"),
        ({"architectures": ["TeleChat3ForCausalLM"]}, "describes TeleChat3ForCausalLM"),
        ({"architectures": 5}, "describes 5"),
        ({"model_type": "llama"}, "has model_type 'llama'"),
        ({}, "has model_type None"),
    ],
)
def test_other_models(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TeleChatConfig.from_hf(raw)


def test_class_defaults_are_the_7b() -> None:
    """An absent key means what it means to the official class; absent tying means tied."""
    config = read()
    assert config == PRESETS["telechat-7b"].replace(hidden_dropout=0.0, attention_dropout=0.0)
    assert config.rope == RopeSettings(base_length=4096, training_length=8192)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id, config.unk_token_id) == (
        1,
        2,
        3,
        0,
    )


def test_aliases() -> None:
    config = read(n_embed=512, hidden_size=64, num_hidden_layers=3, num_attention_heads=8)
    assert (config.hidden_size, config.num_layers, config.num_heads) == (512, 3, 8)


@pytest.mark.parametrize("value", [None, 0])
def test_no_key_value_heads_means_as_many_as_heads(value: Any) -> None:
    assert read(num_key_value_heads=value).num_kv_heads == 32
    assert read(num_key_value_heads=8).num_kv_heads == 8


def test_lengths() -> None:
    assert read(tie_word_embeddings=False).rope.base_length == 8192
    assert read(base_seqlen=2048).rope.base_length == 2048
    config = read(training_seqlen=32768)
    assert (config.training_seqlen, config.seq_length) == (32768, 32768)
    assert read(training_seqlen=32768, seq_length=4096).seq_length == 4096
    assert read(rope_theta=1e6).rope.base == 1e6


def test_dead_fields_are_passed_over() -> None:
    dead = {
        "logn": True, "flash_attn": True, "attention_softmax_in_fp32": True, "n_inner": None,
        "offset_alibi": 100, "pretraining_tp": 2, "slow_but_exact": False, "semi_causal": False,
        "auto_map": {"AutoConfig": "x.Y"}, "transformers_version": "4.30.0",
    }  # fmt: skip
    assert read(**dead) == read()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": "many"}, "vocab_size is 'many'; it must be an integer"),
        ({"vocab_size": 0}, "vocab_size is 0; it must be a positive integer"),
        ({"n_layer": 2.5}, "n_layer is 2.5; it must be an integer"),
        ({"n_layer": True}, "n_layer is True; it must be an integer"),
        ({"n_head": 3}, "hidden_size 4096 is not a multiple of the number of heads 3"),
        ({"hidden_size": 96, "n_head": 32}, "head dimension 3 is odd"),
        ({"num_key_value_heads": 5}, "32 query heads cannot share 5 key/value heads"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0.0; it must be positive"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon is '1e-5'; it must be a number"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan; it must be a number"),
        ({"hidden_dropout": 1.0}, "hidden_dropout is 1.0; it must be in"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; it must be true or false"),
        ({"embed_layernorm": 1}, "embed_layernorm is 1; it must be true or false"),
        ({"training_seqlen": 0}, "rope training_length is 0; it must be a positive number"),
        ({"base_seqlen": -1}, "rope base_length is -1"),
        ({"base_seqlen": 0}, "rope base_length is 0"),
        ({"seq_length": 0}, "seq_length is 0"),
        ({"rope_theta": 0}, "rope base is 0"),
        ({"rope_theta": "big"}, "rope_theta is 'big'"),
        ({"eos_token_id": [2, 3]}, "eos_token_id is .2, 3.; it must be an integer"),
        ({"telechat_rope": {"scale": 2}}, "telechat_rope has unknown keys .'scale'."),
        ({"telechat_rope": 3}, "telechat_rope is 3; it must be an object"),
        ({"moe_config": 3}, "moe_config is 3; it must be an object"),
        ({"expert_num": 4, "top_k": 5}, "5 experts a token cannot come from 4"),
        ({"expert_num": 4, "top_k": 2, "shared_expert_num": 1}, "shared_expert_num is 1"),
        ({"expert_num": 4}, "not how many a token uses"),
    ],
)
def test_wrong_values(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        *PRESETS.values(),
        PRESETS["telechat2-3b"].replace(
            embed_layernorm=True, residual_post_layernorm=True, pad_token_id=9, seq_length=77
        ),
        PRESETS["telechat2-3b"].replace(
            rope=RopeSettings(
                base=5e5, scheme="pi", factor=2.0, base_length=64, training_length=128, table_dtype="float32"
            ),
            moe=MoeConfig(
                num_experts=8,
                num_experts_per_token=3,
                norm_topk_prob=False,
                routed_scaling_factor=2.5,
                aux_loss_factor=0.1,
                capacity_factor=1.5,
            ),
        ),
    ],
)
def test_written_and_read_again(config: TeleChatConfig) -> None:
    assert TeleChatConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_presets() -> None:
    assert preset("telechat2-3b") is PRESETS["telechat2-3b"]
    with pytest.raises(ConfigError, match="telechat-7b"):
        preset("telechat-9b")


def test_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        PRESETS["telechat-7b"].vocab_size = 3  # type: ignore[misc]

"""The demo model as other programs load it: a folder of the Llama architecture, and from that a GGUF file.

The folder is written here; the file by `demo_gguf` in the peers' environment. The numbers are the demo's own
bf16 weights; nothing is rounded.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from telechat.checkpoint import resolve_model

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def write_llama(target: Path) -> Path:
    """Write the folder; returns it. What an earlier run has written is replaced."""
    source = resolve_model("demo")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    assert config["training_seqlen"] == config["base_seqlen"], "the rotary base would not be 10000"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    save_file(llama_tensors(load_file(source / "model.safetensors"), config), target / "model.safetensors")
    for name in _TOKENIZER_FILES:
        shutil.copy2(source / name, target / name)
    (target / "config.json").write_text(json.dumps(llama_config(config), indent=2), encoding="utf-8")
    generation = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    (target / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return target


def llama_config(config: dict[str, int]) -> dict[str, object]:
    """The config of the same model as LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["ffn_hidden_size"],
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": config["n_head"],
        "num_key_value_heads": config["num_key_value_heads"],
        "rms_norm_eps": config["layer_norm_epsilon"],
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "max_position_embeddings": config["training_seqlen"],
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
        "dtype": "bfloat16",
    }


def llama_tensors(tensors: dict[str, Tensor], config: dict[str, int]) -> dict[str, Tensor]:
    """The tensors under Llama's names, with zeros for the biases that TeleChat does not have."""
    num_kv, hidden = config["num_key_value_heads"], config["hidden_size"]
    head_dim = hidden // config["n_head"]
    made = {
        "model.embed_tokens.weight": tensors["transformer.word_embeddings.weight"],
        "model.norm.weight": tensors["transformer.ln_f.weight"],
    }
    for number in range(config["n_layer"]):
        old, new = f"transformer.h.{number}.", f"model.layers.{number}."
        # Keys and values are interleaved by head.
        pair = tensors[f"{old}self_attention.key_value.weight"].view(num_kv, 2, head_dim, hidden)
        made[f"{new}self_attn.q_proj.weight"] = tensors[f"{old}self_attention.query.weight"]
        made[f"{new}self_attn.k_proj.weight"] = pair[:, 0].reshape(-1, hidden).contiguous()
        made[f"{new}self_attn.v_proj.weight"] = pair[:, 1].reshape(-1, hidden).contiguous()
        for part in ("weight", "bias"):
            made[f"{new}self_attn.o_proj.{part}"] = tensors[f"{old}self_attention.dense.{part}"]
            made[f"{new}mlp.down_proj.{part}"] = tensors[f"{old}mlp.down_proj.{part}"]
        for name in ("mlp.gate_proj", "mlp.up_proj", "input_layernorm", "post_attention_layernorm"):
            made[f"{new}{name}.weight"] = tensors[f"{old}{name}.weight"]
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
        ):
            rows = made[f"{new}{name}.weight"].shape[0]
            made[f"{new}{name}.bias"] = torch.zeros(rows, dtype=pair.dtype)
    return made

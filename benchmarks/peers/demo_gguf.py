"""Writes a GGUF file of a Llama folder that `demo_llama` has written, for llama.cpp.

Runs in the peers' environment (gguf, numpy):

    python -m benchmarks.peers.demo_gguf FOLDER FILE
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}
_LAYER_NAMES = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.o_proj.bias": "attn_output.bias",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.down_proj.bias": "ffn_down.bias",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}


def read_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """bf16 tensors of a safetensors file, as uint16."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    for name, entry in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}"
            begin, end = entry["data_offsets"]
            raw = content[8 + size + begin : 8 + size + end]
            yield name, np.frombuffer(raw, dtype=np.uint16).reshape(entry["shape"])


def gguf_name(name: str) -> str | None:
    """The name in the file; None for the biases that are zeros."""
    if name.startswith("model.layers."):
        number, _, rest = name.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{_LAYER_NAMES[rest]}" if rest in _LAYER_NAMES else None
    return _NAMES[name]


def in_rotary_order(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp turns them: pairs side by side, not half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(folder: Path, path: Path) -> None:
    """Write the file."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, folder, config)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, weight in read_tensors(folder / "model.safetensors"):
        place = gguf_name(name)
        if place is None:
            continue
        part = place.split(".")[-2]
        if part in heads:
            weight = in_rotary_order(weight, heads[part])
        if weight.ndim == 1:
            wide = (weight.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(place, wide)
        else:
            raw = np.ascontiguousarray(weight).view(np.uint8)
            writer.add_tensor(place, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    """The byte-level BPE vocabulary, its merges and the chat template."""
    file = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    words = {number: word for word, number in file["model"]["vocab"].items()}
    special = {entry["id"]: entry["content"] for entry in file["added_tokens"]}
    words |= special
    numbers = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([words.get(number, f"<unused{number}>") for number in numbers])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if number in special else normal for number in numbers])
    writer.add_token_merges([" ".join(pair) for pair in file["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(settings["chat_template"])


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))

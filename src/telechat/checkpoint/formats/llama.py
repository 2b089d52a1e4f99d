"""Plain Llama: what stock transformers, vLLM and mlx-lm run without knowing TeleChat.

A dense TeleChat is a Llama with a bias on two projections. Llama creates biases in groups, so the others
are written as zeros. The rotary base is that of one length, and attention's scaling, which Llama does not
have, is multiplied into the query projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telechat.checkpoint.folder import CONFIG, read_json
from telechat.checkpoint.formats.hf import (
    companions,
    index_file,
    json_bytes,
    lazy_tensors,
    plan_folder,
    refuse_quantised,
)
from telechat.checkpoint.formats.lazy import LazyTensor, cast, join, mapped, zeros
from telechat.checkpoint.formats.stock_tokenizer import stock_tokenizer
from telechat.checkpoint.formats.table import Checkpoint, fit_table, without_tied_head
from telechat.checkpoint.formats.writing import TargetPlan
from telechat.checkpoint.mindspore.naming import fuse_heads, split_heads
from telechat.checkpoint.names import EMBEDDING, HEAD
from telechat.checkpoint.save import DEFAULT_SHARD_BYTES
from telechat.checkpoint.weights import open_weights
from telechat.device import dtype_name
from telechat.errors import CheckpointError, ConfigError
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig

NAME = "llama"
EMBEDDING_NORM = "transformer.word_embeddings_layernorm.weight"
# Our config.json within Llama's, where nothing had to be folded: then the way back is exact.
ORIGIN = "telechat_config"
_ARCHITECTURE = "LlamaForCausalLM"
_SAME = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "self_attention.dense.bias": "self_attn.o_proj.bias",
    "mlp.gate_proj.weight": "mlp.gate_proj.weight",
    "mlp.up_proj.weight": "mlp.up_proj.weight",
    "mlp.down_proj.weight": "mlp.down_proj.weight",
    "mlp.down_proj.bias": "mlp.down_proj.bias",
}
_ZERO_BIASES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")


def check_fits(config: TeleChatConfig, target: str) -> None:
    """Refuse a model that is no Llama.

    Raises:
        CheckpointError: a mixture, residuals after the norm, or a tied embedding with a norm of its own.
    """
    if config.moe:
        raise CheckpointError(
            f"A mixture of experts is no Llama; it cannot be written as {target}.",
            hint="Convert it to hf or mindspore.",
        )
    if config.residual_post_layernorm:
        raise CheckpointError(f"This model takes residuals after the norm; {target} cannot express that.")
    if config.embed_layernorm and config.tie_word_embeddings:
        raise CheckpointError(
            f"This model normalises an embedding that is its head, too; {target} cannot express that."
        )


def rope_theta(config: TeleChatConfig, length: int) -> float:
    """The rotary base of a call of `length` tokens."""
    rope = config.rope
    alpha, _ = rope.stretch(length)
    factor = rope.factor if rope.scheme == "ntk-static" else 1.0
    theta: float = rope.base * factor * alpha ** (config.head_dim / (config.head_dim - 2))
    return theta


def query_scale(config: TeleChatConfig, length: int) -> float:
    """What the query projection is multiplied by: cos and sin, scaled alike, scale scores by the square."""
    return config.rope.stretch(length)[1] ** 2


def embedding_of(checkpoint: Checkpoint) -> LazyTensor:
    """The embedding with its norm, if it has one, computed once for all rows."""
    config, embedding = checkpoint.config, checkpoint.tensors[EMBEDDING]
    if not config.embed_layernorm:
        return embedding
    norm = checkpoint.tensors[EMBEDDING_NORM]

    def normalise(rows: Tensor) -> Tensor:
        rows = rows.float()
        scaled = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + config.norm_eps)
        return scaled * norm.read().float()

    return mapped(embedding, normalise)


def query_of(checkpoint: Checkpoint, layer: int, length: int) -> LazyTensor:
    """A layer's query projection with attention's scaling folded in."""
    query = checkpoint.tensors[f"transformer.h.{layer}.self_attention.query.weight"]
    scale = query_scale(checkpoint.config, length)
    return query if scale == 1 else mapped(query, lambda rows: rows.float() * scale)


def plan_llama(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    length: int | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> TargetPlan:
    """The plan of a Llama folder.

    Args:
        length: context that rotary base and attention scaling are fixed for, in tokens; by default the one
            the model was trained at.

    Raises:
        CheckpointError: the model is no Llama.
    """
    check_fits(checkpoint.config, NAME)
    length = length or checkpoint.config.training_seqlen
    tensors = {name: cast(t, dtype) for name, t in to_llama(checkpoint, length).items()}
    config = llama_config(checkpoint.config, length, dtype or checkpoint.dtype)
    small = {CONFIG: json_bytes(config), **index_file(tensors, max_shard_bytes), **companions(checkpoint)}
    return TargetPlan(files=plan_folder(tensors, max_shard_bytes), small={**small, **stock_tokenizer(small)})


def to_llama(checkpoint: Checkpoint, length: int) -> dict[str, LazyTensor]:
    """The tensors under Llama's names."""
    config, ours = checkpoint.config, checkpoint.tensors
    llama = {"model.embed_tokens.weight": embedding_of(checkpoint)}
    for layer in range(config.num_layers):
        source, target = f"transformer.h.{layer}.", f"model.layers.{layer}."
        keys, values = split_heads(ours[f"{source}self_attention.key_value.weight"], config.head_dim)
        llama[f"{target}self_attn.q_proj.weight"] = query_of(checkpoint, layer, length)
        llama[f"{target}self_attn.k_proj.weight"] = join(keys)
        llama[f"{target}self_attn.v_proj.weight"] = join(values)
        llama |= {target + theirs: ours[source + name] for name, theirs in _SAME.items()}
        for name in _ZERO_BIASES:
            weight = llama[f"{target}{name}.weight"]
            llama[f"{target}{name}.bias"] = zeros(weight.shape[:1], weight.dtype)
    llama["model.norm.weight"] = ours["transformer.ln_f.weight"]
    if not config.tie_word_embeddings:
        llama[HEAD] = ours[HEAD]
    return llama


def llama_config(config: TeleChatConfig, length: int, dtype: torch.dtype) -> dict[str, Any]:
    """Contents of config.json."""
    theta = rope_theta(config, length)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    scaling = None
    if config.rope.scheme == "pi":
        scaling = {"rope_type": "linear", "type": "linear", "factor": config.rope.factor}
        rope = {"rope_type": "linear", "factor": config.rope.factor, "rope_theta": theta}
    raw = {
        "architectures": [_ARCHITECTURE],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.initializer_range,
        "attention_bias": True,
        "mlp_bias": True,
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": length,
        # Older readers want the first two, transformers from version 5 on the third.
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": rope,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": dtype_name(dtype),
        "use_cache": True,
    }
    if is_unfolded(config, length):
        raw[ORIGIN] = config.to_hf()
    return raw


def is_unfolded(config: TeleChatConfig, length: int) -> bool:
    """Whether the weights are the model's own, so that the way back is exact."""
    return query_scale(config, length) == 1 and not config.embed_layernorm


def is_llama(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a Llama."""
    return raw.get("model_type") == "llama" or _ARCHITECTURE in (raw.get("architectures") or [])


def open_llama(folder: Path) -> Checkpoint:
    """Open a Llama folder: one of ours, or another of which every bias that TeleChat lacks is zero.

    Raises:
        CheckpointError: it has biases that TeleChat has no place for, or lacks tensors.
    """
    raw = read_json(folder / CONFIG)
    config = read_llama_config(raw)
    stored = lazy_tensors(open_weights(folder))
    refuse_quantised(folder, raw, stored)
    tensors = from_llama(stored, config, folder.name)
    declared = read_llama_config({key: value for key, value in raw.items() if key != ORIGIN})
    return Checkpoint(config=config, tensors=tensors, folder=folder, format="Llama folder", runs_as=declared)


def read_llama_config(raw: Mapping[str, Any]) -> TeleChatConfig:
    """Our configuration of a Llama.

    Raises:
        ConfigError: a size is missing, or its rotary settings are of a kind that TeleChat has not.
    """
    if isinstance(raw.get(ORIGIN), dict):
        return TeleChatConfig.from_hf(raw[ORIGIN])
    rope = raw.get("rope_parameters") or {
        **(raw.get("rope_scaling") or {}),
        "rope_theta": raw.get("rope_theta"),
    }
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear"):
        raise ConfigError(f"rope_type is {kind!r}; default and linear can be converted.")
    try:
        length = int(raw.get("max_position_embeddings", 8192))
        return TeleChatConfig(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            ffn_hidden_size=raw["intermediate_size"],
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            seq_length=length,
            rope=RopeSettings(
                base=float(rope.get("rope_theta") or 10000.0),
                scheme="pi" if kind == "linear" else "none",
                factor=float(rope.get("factor", 1.0)),
                base_length=length,
                training_length=length,
                table_dtype="float32",
            ),
            **{key: raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")
               if isinstance(raw.get(key), int)},
        )  # fmt: skip
    except KeyError as error:
        raise ConfigError(f"config.json of this Llama lacks {error.args[0]}.") from error


def from_llama(llama: Mapping[str, LazyTensor], config: TeleChatConfig, source: str) -> dict[str, LazyTensor]:
    """The tensors under our names."""
    rest = dict(llama)
    dtype = next(iter(rest.values())).dtype

    def take(name: str, *, default: tuple[int, ...] | None = None) -> LazyTensor:
        if name not in rest and default is not None:
            return zeros(default, dtype)
        if name not in rest:
            raise CheckpointError(f"{source} lacks {name}.")
        return rest.pop(name)

    ours = {
        EMBEDDING: take("model.embed_tokens.weight"),
        "transformer.ln_f.weight": take("model.norm.weight"),
    }
    width = (config.hidden_size,)
    for layer in range(config.num_layers):
        target, block = f"transformer.h.{layer}.", f"model.layers.{layer}."
        ours[f"{target}self_attention.query.weight"] = take(f"{block}self_attn.q_proj.weight")
        keys, values = take(f"{block}self_attn.k_proj.weight"), take(f"{block}self_attn.v_proj.weight")
        ours[f"{target}self_attention.key_value.weight"] = fuse_heads(keys, values, config.head_dim)
        for name, theirs in _SAME.items():
            ours[target + name] = take(block + theirs, default=width if name.endswith("bias") else None)
        for name in _ZERO_BIASES:
            bias = rest.pop(f"{block}{name}.bias", None)
            if bias is not None and bool(bias.read().any()):
                raise CheckpointError(f"{source}: {block}{name}.bias is not zero; TeleChat has no such bias.")
    if HEAD in rest or not config.tie_word_embeddings:
        ours[HEAD] = take(HEAD)
    rest = {name: tensor for name, tensor in rest.items() if not name.endswith("rotary_emb.inv_freq")}
    if rest:
        raise CheckpointError(f"{source}: {next(iter(rest))} has no place in a TeleChat model.")
    return fit_table(without_tied_head(ours, config, source), config, source)

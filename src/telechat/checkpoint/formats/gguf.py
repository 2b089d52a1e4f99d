"""GGUF files for llama.cpp and everything built on it: a dense TeleChat as the architecture `llama`.

Queries and keys have their rows in llama.cpp's rotary order; zero biases are left out; norms and biases stay
in fp32; the rotary base is that of one length, with attention's scaling in the query projection.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telechat.checkpoint.formats.gguf_blocks import to_q4_0, to_q8_0
from telechat.checkpoint.formats.gguf_file import ENCODINGS, Encoding, Stored, plan_gguf, stored_shape
from telechat.checkpoint.formats.gguf_tokenizer import tokenizer_metadata
from telechat.checkpoint.formats.hf import tokenizer_folder
from telechat.checkpoint.formats.lazy import LazyTensor, cast, join, mapped
from telechat.checkpoint.formats.llama import (
    check_fits,
    embedding_of,
    is_unfolded,
    query_of,
    rope_theta,
)
from telechat.checkpoint.formats.table import Checkpoint
from telechat.checkpoint.formats.writing import TargetPlan
from telechat.checkpoint.mindspore.naming import split_heads
from telechat.checkpoint.names import HEAD
from telechat.errors import CheckpointError

log = logging.getLogger(__name__)

NAME = "gguf"
SUFFIX = ".gguf"
# Our config.json as text, where nothing had to be folded into the weights: then the way back is exact.
ORIGIN_KEY = "telechat.config"
LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attention.dense.weight": "attn_output.weight",
    "self_attention.dense.bias": "attn_output.bias",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.down_proj.bias": "ffn_down.bias",
}
# Encoding -> llama.cpp's number for a file of it.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
_QUANTISERS: dict[str, Callable[[Tensor], Tensor]] = {"Q8_0": to_q8_0, "Q4_0": to_q4_0}
_OF_DTYPE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TYPES = tuple(_FILE_TYPES)


def plan_gguf_file(
    checkpoint: Checkpoint, target: Path, *, kind: str | None = None, length: int | None = None
) -> TargetPlan:
    """The plan of a GGUF file, or of a folder with the file and an Ollama Modelfile.

    Args:
        target: a file `.gguf`, or a folder.
        kind: one of `TYPES`; by default the checkpoint's dtype.
        length: context that rotary base and attention scaling are fixed for, in tokens; by default the one
            the model was trained at.

    Raises:
        CheckpointError: the model is no Llama, or has no tokenizer.
        TokenizerError: llama.cpp cannot split text as this tokenizer does.
    """
    check_fits(checkpoint.config, "GGUF")
    kind = kind or _OF_DTYPE.get(checkpoint.dtype, "F32")
    length = length or checkpoint.config.training_seqlen
    is_file = target.suffix == SUFFIX
    name = target.name if is_file else f"model-{kind}{SUFFIX}"
    with tokenizer_folder(checkpoint) as folder:
        if folder is None:
            raise CheckpointError(
                "A GGUF file needs the model's tokenizer.", hint="Name a folder that has one."
            )
        tokenizer = tokenizer_metadata(folder, checkpoint.config.vocab_size)
        small = {} if is_file else {"Modelfile": modelfile(name, folder, length)}
    metadata = {**_model_metadata(checkpoint, kind, length), **tokenizer}
    plan = plan_gguf(name, metadata, gguf_tensors(checkpoint, kind, length))
    return TargetPlan(files=(plan,), small=small, is_file=is_file)


def _model_metadata(checkpoint: Checkpoint, kind: str, length: int) -> dict[str, Any]:
    config, folder = checkpoint.config, checkpoint.folder
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": folder.resolve().name if folder else "telechat",
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": 2,
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": length,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_layers,
        "llama.feed_forward_length": config.ffn_hidden_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": rope_theta(config, length),
    }
    if config.rope.scheme == "pi":
        metadata |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": config.rope.factor}
    if is_unfolded(config, length):
        metadata[ORIGIN_KEY] = json.dumps(config.to_hf(), ensure_ascii=False)
    return metadata


def gguf_tensors(checkpoint: Checkpoint, kind: str, length: int) -> dict[str, Stored]:
    """The tensors under llama.cpp's names, encoded."""
    config, ours = checkpoint.config, checkpoint.tensors
    plain = {"token_embd.weight": embedding_of(checkpoint)}
    for layer in range(config.num_layers):
        source, target = f"transformer.h.{layer}.", f"blk.{layer}."
        keys, values = split_heads(ours[f"{source}self_attention.key_value.weight"], config.head_dim)
        query = query_of(checkpoint, layer, length)
        plain[f"{target}attn_q.weight"] = in_rotary_order(query, config.head_dim)
        plain[f"{target}attn_k.weight"] = in_rotary_order(join(keys), config.head_dim)
        plain[f"{target}attn_v.weight"] = join(values)
        plain |= {target + theirs: ours[source + name] for name, theirs in LAYER_NAMES.items()}
    plain["output_norm.weight"] = ours["transformer.ln_f.weight"]
    if not config.tie_word_embeddings:
        plain["output.weight"] = ours[HEAD]
    return {name: _encoded(name, tensor, kind) for name, tensor in plain.items()}


def in_rotary_order(tensor: LazyTensor, head_dim: int) -> LazyTensor:
    """Rows of queries or keys with the pairs that are turned together side by side."""
    return mapped(
        tensor,
        lambda rows: rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2),
        block=head_dim,
    )


def in_half_order(tensor: LazyTensor, head_dim: int) -> LazyTensor:
    """The opposite of `in_rotary_order`: pairs half a head apart."""
    return mapped(
        tensor,
        lambda rows: rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2),
        block=head_dim,
    )


def _encoded(name: str, tensor: LazyTensor, kind: str) -> Stored:
    encoding = _encoding_for(name, tensor.shape, kind)
    if encoding.dtype is not None:
        return Stored(tensor.shape, encoding, cast(tensor, encoding.dtype))
    shape = stored_shape(tensor.shape, encoding)
    content = mapped(tensor, _QUANTISERS[encoding.name], shape=shape, dtype=torch.uint8)
    return Stored(tensor.shape, encoding, content)


def _encoding_for(name: str, shape: tuple[int, ...], kind: str) -> Encoding:
    """Vectors stay in fp32; embedding and head of a 4-bit file get 8 bits; what does not fill blocks fp16."""
    if len(shape) == 1:
        return ENCODINGS["F32"]
    if kind == "Q4_0" and name in ("token_embd.weight", "output.weight"):
        kind = "Q8_0"
    if shape[-1] % ENCODINGS[kind].block:
        log.warning("%s has rows of %d, which do not fill blocks: stored as F16", name, shape[-1])
        kind = "F16"
    return ENCODINGS[kind]


def modelfile(name: str, folder: Path, length: int) -> bytes:
    """An Ollama Modelfile: the weights, the conversation format, where answers end."""
    from telechat.checkpoint.folder import read_generation_config
    from telechat.tokenizer import load_tokenizer
    from telechat.tokenizer.jinja_template import ollama_template

    generation = read_generation_config(folder)
    lines = [f"FROM ./{name}", f'TEMPLATE """{ollama_template(load_tokenizer(folder).chat_format.name)}"""']
    lines += [f'PARAMETER stop "{word}"' for word in ("<_end>", "<_user>")]
    lines.append(f"PARAMETER num_ctx {length}")
    penalty = generation.get("repetition_penalty")
    if isinstance(penalty, int | float) and math.isfinite(penalty):
        lines.append(f"PARAMETER repeat_penalty {penalty}")
    if not generation.get("do_sample", False):
        lines.append("PARAMETER temperature 0")
    return ("\n".join(lines) + "\n").encode()

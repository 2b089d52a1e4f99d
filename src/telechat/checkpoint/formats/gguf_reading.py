"""GGUF files as a source: those we write, and others of the architecture `llama` that fit a TeleChat.

Quantised tensors are read as the numbers they stand for. The tokenizer inside is taken where none lies beside
the file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telechat.checkpoint.formats.gguf import LAYER_NAMES, ORIGIN_KEY, in_half_order
from telechat.checkpoint.formats.gguf_blocks import from_q4_0, from_q8_0
from telechat.checkpoint.formats.gguf_file import Stored, read_gguf
from telechat.checkpoint.formats.gguf_tokenizer_reading import tokenizer_files
from telechat.checkpoint.formats.lazy import LazyTensor, mapped, zeros
from telechat.checkpoint.formats.table import Checkpoint, fit_table
from telechat.checkpoint.mindspore.naming import fuse_heads
from telechat.checkpoint.names import EMBEDDING, HEAD
from telechat.errors import CheckpointError, TokenizerError
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig
from telechat.tokenizer.load import VOCABULARY_FILES

log = logging.getLogger(__name__)

_DECODERS: dict[str, Callable[[Tensor], Tensor]] = {"Q8_0": from_q8_0, "Q4_0": from_q4_0}
# Tables that a file may hold and that the model computes.
_TABLES = ("rope_freqs.weight",)


def open_gguf(path: Path) -> Checkpoint:
    """Open a file.

    Raises:
        CheckpointError: damaged, of another architecture, or with tensors that TeleChat has no place for.
    """
    file = read_gguf(path)
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(f"{path.name} is of the architecture {architecture!r}; llama can be read.")
    config = _config(path, file.metadata, file.tensors)
    tensors = from_gguf({name: _numbers(stored) for name, stored in file.tensors.items()}, config, path.name)
    plain = {key: value for key, value in file.metadata.items() if key != ORIGIN_KEY}
    declared = _config(path, plain, file.tensors)
    return Checkpoint(
        config=config,
        tensors=tensors,
        folder=path.parent,
        format="GGUF file",
        runs_as=declared,
        inside=_tokenizer(path, file.metadata),
    )


def _tokenizer(path: Path, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Files of the tokenizer, unless one lies beside the file, or the one inside cannot be read."""
    if any((path.parent / name).is_file() for name in VOCABULARY_FILES):
        return {}
    try:
        return tokenizer_files(metadata)
    except TokenizerError as error:
        log.warning(
            "%s: %s. Put tokenizer.model or tokenizer.json beside it, or name it with --tokenizer.",
            path.name,
            error.message,
        )
        return {}


def _numbers(stored: Stored) -> LazyTensor:
    if stored.encoding.dtype is not None:
        return stored.tensor
    decode = _DECODERS[stored.encoding.name]
    return mapped(stored.tensor, decode, shape=stored.shape, dtype=torch.float32)


def _config(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> TeleChatConfig:
    if ORIGIN_KEY in metadata:
        return TeleChatConfig.from_hf(json.loads(metadata[ORIGIN_KEY]))
    try:
        length = metadata["llama.context_length"]
        is_linear = metadata.get("llama.rope.scaling.type") == "linear"
        rope = RopeSettings(
            base=metadata.get("llama.rope.freq_base", 10000.0),
            scheme="pi" if is_linear else "none",
            factor=metadata.get("llama.rope.scaling.factor", 1.0) if is_linear else 1.0,
            base_length=length,
            training_length=length,
            table_dtype="float32",
        )
        return TeleChatConfig(
            vocab_size=tensors["token_embd.weight"].shape[0],
            hidden_size=metadata["llama.embedding_length"],
            num_layers=metadata["llama.block_count"],
            num_heads=metadata["llama.attention.head_count"],
            num_kv_heads=metadata.get(
                "llama.attention.head_count_kv", metadata["llama.attention.head_count"]
            ),
            ffn_hidden_size=metadata["llama.feed_forward_length"],
            norm_eps=metadata["llama.attention.layer_norm_rms_epsilon"],
            tie_word_embeddings="output.weight" not in tensors,
            seq_length=length,
            rope=rope,
        )
    except KeyError as error:
        raise CheckpointError(f"{path.name} lacks {error.args[0]}.") from error


def from_gguf(stored: Mapping[str, LazyTensor], config: TeleChatConfig, source: str) -> dict[str, LazyTensor]:
    """The tensors under our names."""
    rest = {name: tensor for name, tensor in stored.items() if name not in _TABLES}

    def take(name: str) -> LazyTensor:
        if name not in rest and name.endswith(".bias"):
            return zeros((config.hidden_size,), torch.float32)
        if name not in rest:
            raise CheckpointError(f"{source} lacks {name}.")
        return rest.pop(name)

    ours = {EMBEDDING: take("token_embd.weight"), "transformer.ln_f.weight": take("output_norm.weight")}
    for layer in range(config.num_layers):
        target, block = f"transformer.h.{layer}.", f"blk.{layer}."
        query, keys = (in_half_order(take(f"{block}attn_{part}.weight"), config.head_dim) for part in "qk")
        ours[f"{target}self_attention.query.weight"] = query
        fused = fuse_heads(keys, take(f"{block}attn_v.weight"), config.head_dim)
        ours[f"{target}self_attention.key_value.weight"] = fused
        ours |= {target + name: take(block + theirs) for name, theirs in LAYER_NAMES.items()}
    if not config.tie_word_embeddings:
        ours[HEAD] = take("output.weight")
    if rest:
        raise CheckpointError(f"{source}: {next(iter(rest))} has no place in a TeleChat model.")
    return fit_table(ours, config, source)

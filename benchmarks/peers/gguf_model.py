"""Writes a GGUF model of random weights, of the Llama architecture, for llama.cpp.

Runs in the peers' environment (gguf, numpy). No tokenizer: the bench hands over token ids. The head has the
format of the other weights, so that both sides read the same bits per weight.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from benchmarks.shapes import GGUF_TYPES, Shape

CONTEXT = 4096
BLOCK = 32  # weights per scale in Q4_0 and Q8_0


def model_path(folder: Path, shape: Shape, weight_format: str) -> Path:
    """Where the model of that shape and format is, or will be."""
    return folder / f"{shape.name}-{GGUF_TYPES[weight_format]}.gguf"


def write_model(path: Path, shape: Shape, weight_format: str) -> None:
    """Write the model; `path` appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    writer.add_block_count(shape.num_layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.hidden // shape.num_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")
    generator = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType[GGUF_TYPES[weight_format]]
    # Every matrix is a copy of one block of rows: time does not depend on values, and this writes fast.
    tiles: dict[int, np.ndarray] = {}
    for name, rows, columns in _matrices(shape):
        if columns not in tiles:
            tiles[columns] = _random_rows(generator, 32, columns, weight_format)
        writer.add_tensor(name, np.tile(tiles[columns], (rows // 32, 1)), raw_dtype=kind)
    for name in _norms(shape):
        writer.add_tensor(name, np.ones(shape.hidden, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, path)


def _matrices(shape: Shape) -> Iterator[tuple[str, int, int]]:
    hidden, ffn = shape.hidden, shape.ffn
    yield "token_embd.weight", shape.vocab, hidden
    yield "output.weight", shape.vocab, hidden
    for number in range(shape.num_layers):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{number}.{part}.weight", hidden, hidden
        yield f"blk.{number}.ffn_gate.weight", ffn, hidden
        yield f"blk.{number}.ffn_up.weight", ffn, hidden
        yield f"blk.{number}.ffn_down.weight", hidden, ffn


def _norms(shape: Shape) -> Iterator[str]:
    yield "output_norm.weight"
    for number in range(shape.num_layers):
        yield f"blk.{number}.attn_norm.weight"
        yield f"blk.{number}.ffn_norm.weight"


def _random_rows(generator: np.random.Generator, rows: int, columns: int, weight_format: str) -> np.ndarray:
    """Rows as GGUF stores them: uint8 [rows, bytes of a row]."""
    if weight_format == "bf16":
        values = generator.normal(0, 0.02, (rows, columns)).astype(np.float32)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    bytes_of_integers = {"int4": BLOCK // 2, "int8": BLOCK}[weight_format]
    largest = {"int4": 8, "int8": 127}[weight_format]
    integers = generator.integers(0, 256, (rows, columns // BLOCK, bytes_of_integers), dtype=np.uint8)
    scales = np.full((rows, columns // BLOCK, 1), 0.04 / largest, dtype=np.float16).view(np.uint8)
    return np.concatenate([scales, integers], axis=2).reshape(rows, -1)

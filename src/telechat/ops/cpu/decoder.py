"""All layers of a dense decoder, final norm and head in one call.

For models whose layers take less time than the Python calls around them. The residual stream is fp32. Shapes:
T new tokens, L rows whose logits are wanted, V vocabulary. Knows nothing of embeddings, rotary tables or
sampling, nor of the models whose weights it is given.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from telechat.ops.cpu import library
from telechat.ops.cpu.attention import sequences_geometry, sequences_obstacle
from telechat.ops.cpu.cache import cache_geometry, cache_obstacle
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.tensors import require
from telechat.ops.cpu.weights import PackedWeight
from telechat.ops.paged import PagedCache, Sequences


@dataclass(frozen=True)
class DecoderLayer:
    """Weights of one layer; norms and biases are float32."""

    query: PackedWeight
    key_value: PackedWeight
    dense: PackedWeight
    gate: PackedWeight
    up: PackedWeight
    down: PackedWeight
    input_norm: Tensor
    post_norm: Tensor
    dense_bias: Tensor | None
    down_bias: Tensor | None


class Decoder:
    """Layers, final norm and head bound to a cache.

    Args:
        caches: one per layer, all of one shape and dtype.
        final_norm: float32 [hidden].
        head: [V, hidden].
        deterministic: a row's result must not depend on the other rows.
    """

    def __init__(
        self,
        context: Context,
        layers: Sequence[DecoderLayer],
        caches: Sequence[PagedCache],
        final_norm: Tensor,
        head: PackedWeight,
        *,
        num_heads: int,
        eps: float,
        residual_post_norm: bool = False,
        deterministic: bool = False,
    ) -> None:
        require(obstacle(layers, caches, final_norm, head, num_heads))
        self.context = context
        self.hidden, self.vocab_size = head.columns, head.rows
        self.num_heads, self.head_dim = num_heads, caches[0].keys.shape[3]
        # C keeps addresses only; these keep what is there alive.
        self._kept = (list(layers), list(caches), final_norm, head)
        self._layers = (library.Layer * len(layers))(
            *(_layer_struct(layer, cache) for layer, cache in zip(layers, caches, strict=True))
        )
        self._struct = library.Decoder(
            num_layers=len(layers),
            hidden=self.hidden,
            ffn=layers[0].gate.rows,
            num_heads=num_heads,
            layers=ctypes.cast(self._layers, POINTER(library.Layer)),
            final_norm=final_norm.data_ptr(),
            head=ctypes.pointer(head.struct),
            eps=eps,
            residual_post_norm=int(residual_post_norm),
            deterministic=int(deterministic),
            **cache_geometry(caches[0]),
        )

    def __call__(
        self,
        x_TD: Tensor,
        cos_Td: Tensor,
        sin_Td: Tensor,
        slots_T: Tensor,
        sequences: Sequences,
        logit_rows_L: Tensor,
    ) -> Tensor:
        """Run the new tokens, writing their keys and values into the cache.

        Args:
            x_TD: embeddings, float32 [T, hidden], contiguous; becomes the last layer's output.
            cos_Td, sin_Td: rotary rows, float32.
            slots_T: int64 place of each token in the cache, block * block_size + offset.
            logit_rows_L: int64 rows of x whose logits are wanted.

        Returns:
            Logits float32 [L, V].
        """
        T, L = x_TD.shape[0], logit_rows_L.shape[0]
        for name, tensor, shape, dtype in (
            ("x", x_TD, (T, self.hidden), torch.float32),
            ("cos", cos_Td, (T, self.head_dim), torch.float32),
            ("sin", sin_Td, (T, self.head_dim), torch.float32),
            ("slots", slots_T, (T,), torch.int64),
            ("logit_rows", logit_rows_L, (L,), torch.int64),
        ):
            fits = tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()
            assert fits, f"{name} must be contiguous {dtype} {shape}, is {tensor.dtype} {tuple(tensor.shape)}"
        require(sequences_obstacle(sequences))
        logits = torch.empty(L, self.vocab_size)
        batch = library.Batch(
            num_tokens=T,
            num_logits=L,
            slots=slots_T.data_ptr(),
            cos=cos_Td.data_ptr(),
            sin=sin_Td.data_ptr(),
            logit_rows=logit_rows_L.data_ptr(),
            x=x_TD.data_ptr(),
            logits=logits.data_ptr(),
            **sequences_geometry(sequences),
        )
        self.context.library.tc_decode(self.context.handle, ctypes.byref(self._struct), ctypes.byref(batch))
        return logits


def obstacle(
    layers: Sequence[DecoderLayer],
    caches: Sequence[PagedCache],
    final_norm: Tensor,
    head: PackedWeight,
    num_heads: int,
) -> str | None:
    """Why these cannot make a `Decoder`, or None."""
    if not layers or len(layers) != len(caches):
        return f"{len(layers)} layers and {len(caches)} caches"
    first = caches[0]
    num_kv_heads, head_dim = first.keys.shape[1], first.keys.shape[3]
    if num_heads % num_kv_heads:
        return f"{num_heads} query heads do not divide among {num_kv_heads} key/value heads"
    hidden, ffn = head.columns, layers[0].gate.rows
    shapes = {
        "query": (num_heads * head_dim, hidden),
        "key_value": (2 * num_kv_heads * head_dim, hidden),
        "dense": (hidden, num_heads * head_dim),
        "gate": (ffn, hidden),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }
    for layer, cache in zip(layers, caches, strict=True):
        if cache_geometry(cache) != cache_geometry(first):
            return "the layers' caches differ in form"
        problem = cache_obstacle(cache) or _layer_obstacle(layer, shapes, hidden)
        if problem:
            return problem
    return _vector_obstacle("final_norm", final_norm, hidden)


def _layer_obstacle(layer: DecoderLayer, shapes: dict[str, tuple[int, int]], hidden: int) -> str | None:
    for field in fields(DecoderLayer):
        value = getattr(layer, field.name)
        if isinstance(value, PackedWeight):
            if (value.rows, value.columns) != shapes[field.name]:
                return f"{field.name} is {value.rows} x {value.columns}, not {shapes[field.name]}"
        elif value is not None:
            problem = _vector_obstacle(field.name, value, hidden)
            if problem:
                return problem
    return None


def _vector_obstacle(name: str, vector: Tensor, width: int) -> str | None:
    if vector.dtype != torch.float32 or vector.shape != (width,) or not vector.is_contiguous():
        return f"{name} must be contiguous float32 [{width}]"
    return None


def _layer_struct(layer: DecoderLayer, cache: PagedCache) -> library.Layer:
    struct = library.Layer(keys=cache.keys.data_ptr(), values=cache.values.data_ptr())
    for field in fields(DecoderLayer):
        value = getattr(layer, field.name)
        if isinstance(value, PackedWeight):
            setattr(struct, field.name, ctypes.pointer(value.struct))
        elif value is not None:
            setattr(struct, field.name, value.data_ptr())
    return struct

"""All layers of a decoder, final norm and head in one call.

For models whose layers take less time than the Python calls around them. The residual stream is fp32. Shapes:
T new tokens, L rows whose logits are wanted, V vocabulary. Knows nothing of embeddings, rotary tables or
sampling, nor of the models whose weights it is given. Of other ranks it knows only a function that adds up
what all of them have.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER
from dataclasses import dataclass

import torch
from torch import Tensor

from telechat.ops.cpu import library
from telechat.ops.cpu.adapters import PackedAdapter
from telechat.ops.cpu.attention import sequences_fields, sequences_obstacle
from telechat.ops.cpu.cache import cache_obstacle, cache_struct
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.mixture import Mixture
from telechat.ops.cpu.tensors import require, vector_obstacle
from telechat.ops.cpu.weights import PackedWeight, weight_obstacle
from telechat.ops.paged import PagedCache, Sequences

# Replaces a float32 tensor [n] by its sum over all ranks, in place.
ReduceFunction = Callable[[Tensor], None]


@dataclass(frozen=True)
class DecoderLayer:
    """Weights of one layer; norms and biases are float32. Either gate, up and down, or a mixture."""

    query: PackedWeight
    key_value: PackedWeight
    dense: PackedWeight
    input_norm: Tensor
    post_norm: Tensor
    dense_bias: Tensor | None = None
    gate: PackedWeight | None = None
    up: PackedWeight | None = None
    down: PackedWeight | None = None
    down_bias: Tensor | None = None
    mixture: Mixture | None = None


class Decoder:
    """Layers, final norm and head bound to a cache.

    With several ranks each holds some heads and some of the feed-forward's inner width (or some experts), and
    all of the residual stream; one of them has the biases of `dense` and `down`.

    Args:
        caches: one per layer, all of one shape and dtype.
        final_norm: float32 [hidden].
        head: [V, hidden].
        num_heads: query heads, of this rank.
        deterministic: a row's result must not depend on the other rows.
        reduce: called after `dense` and after the feed-forward of every layer; None where there is one rank.
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
        reduce: ReduceFunction | None = None,
    ) -> None:
        require(obstacle(layers, caches, final_norm, head, num_heads))
        self.context = context
        self.hidden, self.vocab_size = head.columns, head.rows
        self.num_heads, self.head_dim = num_heads, caches[0].head_dim
        self._reduce = reduce
        self._failure: BaseException | None = None
        # C keeps addresses only; these keep what is there alive.
        self._kept = (list(layers), list(caches), final_norm, head)
        self._layers = (library.Layer * len(layers))(
            *(_layer_struct(layer, cache) for layer, cache in zip(layers, caches, strict=True))
        )
        self._struct = library.Decoder(
            num_layers=len(layers),
            hidden=self.hidden,
            ffn=max((layer.gate.rows for layer in layers if layer.gate), default=0),
            num_heads=num_heads,
            layers=ctypes.cast(self._layers, POINTER(library.Layer)),
            final_norm=final_norm.data_ptr(),
            head=ctypes.pointer(head.struct),
            eps=eps,
            residual_post_norm=int(residual_post_norm),
            deterministic=int(deterministic),
        )
        if reduce is not None:
            self._struct.reduce = library.Reduce(self._call_reduce)

    def __call__(
        self,
        x_TD: Tensor,
        cos_Td: Tensor,
        sin_Td: Tensor,
        slots_T: Tensor,
        sequences: Sequences,
        logit_rows_L: Tensor,
        adapted: Sequence[tuple[PackedAdapter, int, int]] = (),
    ) -> Tensor:
        """Run the new tokens, writing their keys and values into the cache.

        Args:
            x_TD: embeddings, float32 [T, hidden], contiguous; becomes the last layer's output.
            cos_Td, sin_Td: rotary rows, float32.
            slots_T: int64 place of each token in the cache, block * block_size + offset.
            logit_rows_L: int64 rows of x whose logits are wanted.
            adapted: (adapter, first row, row after the last) of neighbouring rows that have one, in order.

        Returns:
            Logits float32 [L, V].

        Raises:
            Whatever `reduce` raised; the cache rows of these tokens are then undefined.
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
            **sequences_fields(sequences),
        )
        if adapted:
            batch.num_runs, batch.runs = len(adapted), _runs(adapted, T)
        self.context.library.tc_decode(self.context.handle, ctypes.byref(self._struct), ctypes.byref(batch))
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return logits

    def _call_reduce(self, address: int, count: int, state: int | None) -> None:
        """What C calls. Exceptions cannot pass through C: the first one waits, and later calls do nothing."""
        assert self._reduce is not None
        if self._failure is not None:
            return
        try:
            values = (ctypes.c_float * count).from_address(address)
            self._reduce(torch.frombuffer(values, dtype=torch.float32))
        except BaseException as error:  # noqa: BLE001 # raised again when C returns
            self._failure = error


def _runs(
    adapted: Sequence[tuple[PackedAdapter, int, int]], num_rows: int
) -> ctypes.Array[library.AdapterRun]:
    """What C is given of `Decoder.__call__`'s `adapted`."""
    assert all(0 <= first < stop <= num_rows for _, first, stop in adapted), (
        "adapted rows are not the batch's"
    )
    return (library.AdapterRun * len(adapted))(
        *(
            library.AdapterRun(ctypes.cast(adapter.struct, POINTER(library.LowRank)), first, stop - first)
            for adapter, first, stop in adapted
        )
    )


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
    if num_heads % first.num_kv_heads:
        return f"{num_heads} query heads do not divide among {first.num_kv_heads} key/value heads"
    for layer, cache in zip(layers, caches, strict=True):
        if _cache_form(cache) != _cache_form(first):
            return "the layers' caches differ in form"
        problem = cache_obstacle(cache) or _layer_obstacle(layer, first, num_heads, head.columns)
        if problem:
            return problem
    return vector_obstacle("final_norm", final_norm, head.columns)


def _cache_form(cache: PagedCache) -> tuple[object, ...]:
    return cache.keys.shape, cache.keys.stride(), cache.keys.dtype


def _layer_obstacle(layer: DecoderLayer, cache: PagedCache, num_heads: int, hidden: int) -> str | None:
    width, kv_width = num_heads * cache.head_dim, 2 * cache.num_kv_heads * cache.head_dim
    problem = (
        weight_obstacle("query", layer.query, width, hidden)
        or weight_obstacle("key_value", layer.key_value, kv_width, hidden)
        or weight_obstacle("dense", layer.dense, hidden, width)
        or vector_obstacle("input_norm", layer.input_norm, hidden)
        or vector_obstacle("post_norm", layer.post_norm, hidden)
        or (layer.dense_bias is not None and vector_obstacle("dense_bias", layer.dense_bias, hidden))
        or (layer.down_bias is not None and vector_obstacle("down_bias", layer.down_bias, hidden))
    )
    if problem:
        return problem
    if layer.mixture is not None:
        if layer.gate or layer.up or layer.down or layer.down_bias is not None:
            return "a layer has both a mixture and a dense feed-forward"
        return layer.mixture.obstacle(hidden)
    if layer.gate is None or layer.up is None or layer.down is None:
        return "a layer has neither a mixture nor gate, up and down"
    return (
        weight_obstacle("gate", layer.gate, layer.gate.rows, hidden)
        or weight_obstacle("up", layer.up, layer.gate.rows, hidden)
        or weight_obstacle("down", layer.down, hidden, layer.gate.rows)
    )


def _layer_struct(layer: DecoderLayer, cache: PagedCache) -> library.Layer:
    struct = library.Layer(cache=cache_struct(cache))
    for name in ("query", "key_value", "dense", "gate", "up", "down"):
        weight = getattr(layer, name)
        if weight is not None:
            setattr(struct, name, ctypes.pointer(weight.struct))
    for name in ("input_norm", "post_norm", "dense_bias", "down_bias"):
        vector = getattr(layer, name)
        if vector is not None:
            setattr(struct, name, vector.data_ptr())
    if layer.mixture is not None:
        struct.mixture = ctypes.pointer(layer.mixture.struct())
    return struct

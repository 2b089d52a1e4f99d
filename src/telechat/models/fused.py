"""Runs a dense model on an accelerator's fused kernels, decoding steps by replaying a recording.

Projections that read the same input are one product, gate and up with what joins them; a norm and the sum
before it are one kernel. A step in which every sequence has one new token is padded to one of a few sizes,
recorded when a size first occurs, and replayed from then on; every other step launches its kernels one by
one. Padding rows write to a block of their own. A step in which some row has an adapter runs the model's
modules instead, which share their weights with the joined products.

Shapes: T new tokens, S sequences, L rows whose results are wanted, V vocabulary, D hidden size. Knows nothing
of requests, nor of which device it runs on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from telechat.device import HostCopy, synchronize
from telechat.layers.mlp import SwiGLU
from telechat.layers.sums import OutputSum
from telechat.models.adapters import AdapterLayers, ModuleAdapters
from telechat.models.config import TeleChatConfig
from telechat.models.decoder import DecoderBlock, RopeMode, TeleChatModel
from telechat.models.packing import module_obstacle
from telechat.models.paged import PagedBatch, rotary_rows, run_modules
from telechat.models.projection import fuse
from telechat.models.recordings import Inputs, Recordings
from telechat.ops.fused import FusedKernels, Projection
from telechat.ops.paged import PagedCache
from telechat.ops.paged_choice import PagedKernels, choose_paged_kernels

log = logging.getLogger(__name__)


def fused_obstacle(model: TeleChatModel) -> str | None:
    """Why fused kernels cannot run this model, whatever the device, or None."""
    if model.config.moe is not None:
        return "which experts a mixture computes is known during the step only"
    for name, module in model.named_modules():
        if OutputSum.of(module) is not None:
            return "its results are summed over ranks"
        problem = module_obstacle(name, module)
        if problem:
            return problem
    return None


@dataclass(frozen=True)
class _Layer:
    """The weights of a block; `opened` is gate and up, silu(gate) * up."""

    input_norm: Tensor
    qkv: Projection
    dense: Projection
    post_norm: Tensor
    opened: Projection
    down: Projection


class FusedExecutor:
    """A dense model on fused kernels; see `Executor`.

    Args:
        model: in eval mode, without a `fused_obstacle`. Its weights move into joined tensors and stay usable.
        kernels: of the model's device.
        kv_dtype: of the cache; by default the model's.
        paged: kernels of the cache; by default the fastest that can run.
    """

    def __init__(
        self,
        model: TeleChatModel,
        kernels: FusedKernels,
        *,
        kv_dtype: torch.dtype | None = None,
        paged: PagedKernels | None = None,
    ) -> None:
        obstacle = fused_obstacle(model)
        assert obstacle is None, obstacle
        self.model = model
        self.kernels = kernels
        self.kv_dtype = kv_dtype or model.dtype
        self._given_paged = self._paged = paged
        self._layers = [_pack(block, kernels) for block in model.transformer.blocks]
        if model.has_own_head:
            self._head = fuse([model.lm_head], kernels)
        else:
            self._head = kernels.bind_linear(model.output_weight.detach(), None)
        self._caches: list[PagedCache] = []
        self._recordings: Recordings | None = None
        self._adapters = ModuleAdapters(model)

    @property
    def config(self) -> TeleChatConfig:
        """Shape of the model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def rope_mode(self) -> RopeMode:
        """The model's."""
        return self.model.rope_mode

    @property
    def computes_by_kind(self) -> bool:
        """One form for all tokens."""
        return False

    @property
    def static_length(self) -> int:
        """The model's."""
        return self.model.static_length

    def cache_bytes_per_block(self, block_size: int) -> int:
        """Memory of one block, all layers together."""
        config = self.config
        return config.num_layers * PagedCache.bytes_per_block(
            config.num_kv_heads, block_size, config.head_dim, self.kv_dtype
        )

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make an empty cache, giving back the one before; one block more than asked for takes padding."""
        config = self.config
        self._drop_cache()
        self._caches = [
            PagedCache.allocate(
                num_blocks + 1,
                config.num_kv_heads,
                block_size,
                config.head_dim,
                dtype=self.kv_dtype,
                device=self.device,
            )
            for _ in range(config.num_layers)
        ]
        self._paged = self._given_paged or choose_paged_kernels(
            self.device,
            dtype=self.model.dtype,
            cache_dtype=self.kv_dtype,
            head_dim=config.head_dim,
            block_size=block_size,
        )
        log.info("paged attention: %s (%s)", self._paged.name, self._paged.reason)
        if self.kernels.recorder is not None:
            static = self.rope_mode == "static"
            table_length = self.static_length if static else config.training_seqlen
            self._recordings = Recordings(
                self.kernels.recorder(),
                self._logits,
                device=self.device,
                rotary=self.model.rotary,
                table_length=table_length,
                block_size=block_size,
                padding_block=num_blocks,
                most_tokens=table_length,
                result_width=config.vocab_size,
                dtype=self.model.dtype,
            )

    @torch.inference_mode()
    def forward(self, batch: PagedBatch) -> Tensor:
        """Logits fp32 [L, V]."""
        if batch.adapter_runs:
            return self._adapted_logits(batch)
        if self._recordings is not None and self._recordings.takes(batch):
            logits = self._recordings.run(batch)
        else:
            if self._recordings is not None:
                self._recordings.forget()
            logits = self._logits(self._inputs(batch))
        # A copy: the next replay overwrites what a recording returns.
        return logits.to(torch.float32, copy=True)

    @property
    def can_run_ahead(self) -> bool:
        """Steps that are not recorded are not begun early."""
        return self.kernels.recorder is not None

    @torch.inference_mode()
    def run_ahead(self, chosen: HostCopy) -> None:
        """As `RunsAhead.run_ahead`."""
        if self._recordings is not None:
            self._recordings.run_ahead(chosen)

    @torch.inference_mode()
    def hidden_states(self, batch: PagedBatch) -> Tensor:
        """Final hidden states fp32 [L, hidden]."""
        if batch.adapter_runs:
            return self._adapted_hidden(batch).float()
        return self._hidden(self._inputs(batch)).float()

    def adapter_bytes(self, num_elements: int) -> int:
        """In the model's dtype."""
        return num_elements * self.model.dtype.itemsize

    def load_adapter(self, number: int, layers: AdapterLayers) -> None:
        """As `Executor.load_adapter`."""
        self._adapters.load(number, layers)

    def unload_adapter(self, number: int) -> None:
        """As `Executor.unload_adapter`."""
        self._adapters.unload(number)

    def _adapted_logits(self, batch: PagedBatch) -> Tensor:
        hidden = self._adapted_hidden(batch)
        logits = self._head(hidden).float()
        self._adapters.add_to_logits(logits, hidden, batch.logit_adapters)
        return logits

    def _adapted_hidden(self, batch: PagedBatch) -> Tensor:
        """Final hidden states [L, D] of a batch with adapters."""
        assert self._caches and self._paged is not None, "allocate comes first"
        if self._recordings is not None:
            self._recordings.forget()
        with self._adapters.applied(batch.adapter_runs):
            return run_modules(self.model, self._paged, self._caches, batch)

    def _inputs(self, batch: PagedBatch) -> Inputs:
        device = self.device
        cos, sin = rotary_rows(self.model.rotary, batch.positions_T.to(device), batch.rope_runs)
        wanted = batch.logit_rows_L.to(device)
        token_ids, slots = batch.token_ids_T.to(device), batch.slots_T.to(device)
        return Inputs(token_ids, cos, sin, slots, batch.sequences.to(device), wanted)

    def _logits(self, inputs: Inputs) -> Tensor:
        """[L, V] in the model's dtype."""
        return self._head(self._hidden(inputs))

    def _hidden(self, inputs: Inputs) -> Tensor:
        """Final hidden states [L, D]."""
        assert self._caches and self._paged is not None, "allocate comes first"
        norm, eps = self.kernels.rms_norm, self.config.norm_eps
        transformer = self.model.transformer
        x = transformer.word_embeddings(inputs.token_ids_T)
        if transformer.word_embeddings_layernorm is not None:
            x = norm(x, transformer.word_embeddings_layernorm.weight, eps)
        out: Tensor | None = None
        for layer, cache in zip(self._layers, self._caches, strict=True):
            normed = norm(x, layer.input_norm, eps, add=out)
            x = normed if self.config.residual_post_layernorm else x
            out = layer.dense(self._attention(layer, cache, normed, inputs))
            normed = norm(x, layer.post_norm, eps, add=out)
            x = normed if self.config.residual_post_layernorm else x
            out = layer.down(layer.opened(normed))
        if inputs.wanted_L is not None:
            x = x[inputs.wanted_L]
            out = None if out is None else out[inputs.wanted_L]
        return norm(x, transformer.ln_f.weight, eps, add=out)

    def _attention(self, layer: _Layer, cache: PagedCache, x_TD: Tensor, inputs: Inputs) -> Tensor:
        """Attention before its output projection, [T, D]."""
        assert self._paged is not None
        H, K, d = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        qkv = layer.qkv(x_TD)
        q = qkv[:, : H * d].view(-1, H, d)
        kv = qkv[:, H * d :].view(-1, K, 2, d)
        self._paged.rope_and_store(q, kv, inputs.cos_Td, inputs.sin_Td, inputs.slots_T, cache)
        return self._paged.attention(q, cache, inputs.sequences).reshape(-1, H * d)

    def describe(self) -> str:
        """What computes."""
        cache = str(self.kv_dtype).removeprefix("torch.")
        steps = "decoding steps recorded" if self.kernels.recorder is not None else "steps not recorded"
        line = f"{self.kernels.name} kernels on {self.device} ({self.kernels.reason}), {steps}, cache {cache}"
        if self._paged is not None:
            line += f"; paged attention: {self._paged.name} ({self._paged.reason})"
        return line

    def close(self) -> None:
        """Give cache and recordings back, and the model as it was."""
        self._drop_cache()
        self._adapters.clear()

    def _drop_cache(self) -> None:
        if self._recordings is not None:
            synchronize(self.device)  # a step may have been begun that nobody waits for
        self._recordings = None
        self._caches = []


def _pack(block: DecoderBlock, kernels: FusedKernels) -> _Layer:
    attention, mlp = block.self_attention, block.mlp
    assert isinstance(mlp, SwiGLU)
    return _Layer(
        input_norm=block.input_layernorm.weight,
        qkv=fuse([attention.query, attention.key_value], kernels),
        dense=fuse([attention.dense], kernels),
        post_norm=block.post_attention_layernorm.weight,
        opened=fuse([mlp.gate_proj, mlp.up_proj], kernels, gated=True),
        down=fuse([mlp.down_proj], kernels),
    )

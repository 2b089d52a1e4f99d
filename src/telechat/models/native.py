"""Runs a model on the CPU kernels: all layers of a step in one call of C.

The weights are packed before (`packing`); embedding and rotary tables stay in torch. Shapes: T new tokens, L
rows whose results are wanted, V vocabulary. Knows nothing of requests.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from telechat.device import CPU
from telechat.layers.sums import OutputSum
from telechat.models.adapters import AdapterLayers, adapted_spans
from telechat.models.config import TeleChatConfig
from telechat.models.decoder import RopeMode, TeleChatModel
from telechat.models.packing import FORMATS, module_obstacle, pack_adapter, pack_model
from telechat.models.paged import PagedBatch, rotary_rows
from telechat.ops.cpu import library
from telechat.ops.cpu.adapters import PackedAdapter
from telechat.ops.cpu.cache import allocate_cache, form_obstacle
from telechat.ops.cpu.context import Context, shared_context
from telechat.ops.cpu.decoder import Decoder
from telechat.ops.paged import PagedCache
from telechat.ops.rows import take_rows

log = logging.getLogger(__name__)

_SMALLEST_BLOCK = 16


class NativeExecutor:
    """A model on the CPU kernels; see `Executor`.

    Args:
        model: in eval mode, without a `native_obstacle`.
        deterministic: a row's result must not depend on the other rows of a step.
        kv_dtype: of the cache; by default the model's.
        consume: give the model's weights back while packing; the model cannot be called afterwards.
        context: threads and level; by default the shared one of torch's number of threads and the best level.
    """

    def __init__(
        self,
        model: TeleChatModel,
        *,
        deterministic: bool = False,
        kv_dtype: torch.dtype | None = None,
        consume: bool = False,
        context: Context | None = None,
    ) -> None:
        obstacle = native_obstacle(model, kv_dtype=kv_dtype)
        assert obstacle is None, obstacle
        self.deterministic = deterministic
        self.kv_dtype = kv_dtype or model.dtype
        self.weights = pack_model(model, context or shared_context(), consume=consume)
        self._adapters: dict[int, PackedAdapter] = {}
        self._start()

    def _start(self) -> None:
        self._decoder: Decoder | None = None
        self._sums = AlternatingSums(self.weights.sums) if self.weights.sums else None
        self._num_blocks = self._block_size = 0

    @property
    def config(self) -> TeleChatConfig:
        """Shape of the model."""
        return self.weights.model.config

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return CPU

    @property
    def rope_mode(self) -> RopeMode:
        """The model's."""
        return self.weights.model.rope_mode

    @property
    def computes_by_kind(self) -> bool:
        """The kernels have a form for either kind."""
        return True

    @property
    def static_length(self) -> int:
        """The model's."""
        return self.weights.model.static_length

    def cache_bytes_per_block(self, block_size: int) -> int:
        """Memory of one block, all layers together."""
        config = self.config
        return config.num_layers * PagedCache.bytes_per_block(
            self.weights.num_kv_heads, block_size, config.head_dim, self.kv_dtype
        )

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make an empty cache, giving back the one before."""
        config, weights = self.config, self.weights
        self._decoder = None
        caches = [
            allocate_cache(
                weights.context, num_blocks, weights.num_kv_heads, block_size, config.head_dim, self.kv_dtype
            )
            for _ in range(config.num_layers)
        ]
        self._decoder = Decoder(
            weights.context,
            weights.layers,
            caches,
            weights.final_norm,
            weights.head,
            num_heads=weights.num_heads,
            eps=config.norm_eps,
            residual_post_norm=config.residual_post_layernorm,
            deterministic=self.deterministic,
            reduce=self._sums,
        )
        self._num_blocks, self._block_size = num_blocks, block_size

    def adapter_bytes(self, num_elements: int) -> int:
        """In the dtype that the model is loaded in."""
        return num_elements * self.weights.model.dtype.itemsize

    def load_adapter(self, number: int, layers: AdapterLayers) -> None:
        """As `Executor.load_adapter`."""
        self._adapters[number] = pack_adapter(self.weights, layers)

    def unload_adapter(self, number: int) -> None:
        """As `Executor.unload_adapter`."""
        del self._adapters[number]

    @torch.inference_mode()
    def forward(self, batch: PagedBatch) -> Tensor:
        """Logits fp32 [L, V]."""
        return self._run(batch, batch.logit_rows_L)[1]

    @torch.inference_mode()
    def hidden_states(self, batch: PagedBatch) -> Tensor:
        """Final hidden states fp32 [L, hidden]."""
        x_TD, _ = self._run(batch, batch.logit_rows_L[:0])
        x_LD = x_TD[batch.logit_rows_L]
        return F.rms_norm(x_LD, x_LD.shape[1:], self.weights.final_norm, self.config.norm_eps)

    def _run(self, batch: PagedBatch, logit_rows_L: Tensor) -> tuple[Tensor, Tensor]:
        """(output of the last layer [T, hidden], logits [L, V])."""
        assert self._decoder is not None, "allocate comes first"
        check_batch(batch, self._num_blocks, self._block_size)
        model = self.weights.model
        transformer = model.transformer
        embedding, ids = transformer.word_embeddings, batch.token_ids_T
        # Others hold part of the vocabulary, or look rows up in the packed head.
        is_plain = type(embedding) is nn.Embedding
        x = take_rows(embedding.weight, ids) if is_plain else embedding(ids)
        if transformer.word_embeddings_layernorm is not None:
            x = transformer.word_embeddings_layernorm(x)
        x = x.float()
        cos, sin = rotary_rows(model.rotary, batch.positions_T, batch.rope_runs)
        if self._sums is not None:
            self._sums.restart()
        adapters = [
            (self._adapters[number], start, stop) for start, stop, number in adapted_spans(batch.adapter_runs)
        ]
        logits = self._decoder(x, cos, sin, batch.slots_T, batch.sequences, logit_rows_L, adapters)
        return x, logits

    def describe(self) -> str:
        """What computes."""
        context = self.weights.context
        cache = str(self.kv_dtype).removeprefix("torch.")
        rows = ", a row's result independent of its neighbours" if self.deterministic else ""
        return (
            f"CPU kernels, level {context.isa}, {context.num_threads} threads; "
            f"weights {self.weights.formats}, cache {cache}{rows}"
        )

    def close(self) -> None:
        """Give the cache back."""
        self._start()


def check_batch(batch: PagedBatch, num_blocks: int, block_size: int) -> None:
    """C reads and writes where it is told to: a wrong number here would be memory of somebody else.

    Checked through numpy, whose reductions take a fraction of torch's fixed cost.
    """
    num_tokens, sequences = len(batch.token_ids_T), batch.sequences
    slots, tables = batch.slots_T.numpy(), sequences.block_tables.numpy()
    starts, lengths = sequences.query_starts.numpy(), sequences.kv_lengths.numpy()
    rows = batch.logit_rows_L.numpy()
    assert slots.min() >= 0 and slots.max() < num_blocks * block_size, "slots lie outside the cache"
    assert tables.min() >= 0 and tables.max() < num_blocks, "a block table names blocks there are none of"
    assert lengths.max() <= tables.shape[1] * block_size, "a sequence is longer than its block table"
    assert starts[0] == 0 and starts[-1] == num_tokens, "the sequences' rows are not the batch's"
    assert 0 <= sequences.num_decoding <= len(lengths), "more sequences decode than there are"
    num_new = starts[1:] - starts[:-1]
    assert num_new.min() >= 0 and (lengths >= num_new).all(), "a sequence is shorter than its new tokens"
    assert not len(rows) or (rows.min() >= 0 and rows.max() < num_tokens), "wanted rows are not in the batch"


def native_obstacle(
    model: TeleChatModel, *, kv_dtype: torch.dtype | None = None, device: torch.device | None = None
) -> str | None:
    """Why the CPU kernels cannot run this model, or None. Builds the kernels if need be.

    Args:
        device: where the model will be, if it is not there yet.
    """
    config = model.config
    place = device or model.device
    if place.type != CPU.type:
        return f"the model is on {place}"
    if model.dtype not in FORMATS:
        return f"the weights are {str(model.dtype).removeprefix('torch.')}, not float32 or bfloat16"
    for name, module in model.named_modules():
        problem = module_obstacle(name, module)
        if problem:
            return problem
    form = form_obstacle(torch.float32, kv_dtype or model.dtype, config.head_dim, _SMALLEST_BLOCK)
    return form or library.obstacle()


class AlternatingSums:
    """The kernels' reduction: they call it after attention and after the feed-forward, in turn.

    `restart` comes before every step: one that failed may have ended after any of its sums.
    """

    def __init__(self, sums: tuple[OutputSum, OutputSum]) -> None:
        self._sums = sums
        self.restart()

    def restart(self) -> None:
        """The next call is the one after the first layer's attention."""
        self._num_calls = 0

    def __call__(self, values: Tensor) -> None:
        """Replace fp32 values [n] by their sum over ranks."""
        summed = self._sums[self._num_calls % 2].add_up(values)
        self._num_calls += 1
        if summed is not values:
            values.copy_(summed)

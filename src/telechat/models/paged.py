"""Running a model for new tokens of many sequences at once, over a paged cache.

`Executor` is what an engine drives; `TorchExecutor` runs the modules of a `TeleChatModel` on any device. The
tokens of a step lie side by side in one row. Shapes: T new tokens, S sequences, L rows whose results are
wanted, V vocabulary. Knows nothing of requests, blocks' owners or sampling.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from telechat.device import HostCopy
from telechat.layers.attention import AttentionInputs
from telechat.layers.quantized import bind_products
from telechat.layers.rotary import RotaryTables
from telechat.layers.single_row import bind_single_rows, unbind_single_rows
from telechat.models.adapters import AdapterLayers, AdapterRuns, ModuleAdapters, adapter_of_row
from telechat.models.config import TeleChatConfig
from telechat.models.decoder import RopeMode, TeleChatModel
from telechat.ops.paged import PagedCache, Sequences
from telechat.ops.paged_choice import PagedKernels, choose_paged_kernels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PagedBatch:
    """New tokens of S sequences, all tensors on the CPU.

    Attributes:
        token_ids_T, positions_T: int64; a token's position is its place in its sequence.
        rope_runs: (row after the run, length whose rotary table its tokens are rotated with), in order;
            neighbours of one table may share a run, whichever sequence they belong to.
        slots_T: int64 place of each token in the cache, block * block_size + offset.
        sequences: which rows are whose, and the blocks to read.
        logit_rows_L: int64 rows whose results are wanted, in the order they are wanted in.
        adapter_runs: which rows have which adapter, by the numbers of `Executor.load_adapter`.
    """

    token_ids_T: Tensor
    positions_T: Tensor
    rope_runs: Sequence[tuple[int, int]]
    slots_T: Tensor
    sequences: Sequences
    logit_rows_L: Tensor
    adapter_runs: AdapterRuns = ()

    @property
    def logit_adapters(self) -> list[int | None]:
        """The adapter of each wanted row; empty where no row has one."""
        if not self.adapter_runs:
            return []
        return [adapter_of_row(self.adapter_runs, row) for row in self.logit_rows_L.tolist()]


class Executor(Protocol):
    """A model bound to a paged cache. One thread may use it at a time."""

    @property
    def config(self) -> TeleChatConfig:
        """Shape of the model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where results are."""
        ...

    @property
    def rope_mode(self) -> RopeMode:
        """What happens past the training length, see `TeleChatModel`."""
        ...

    @property
    def computes_by_kind(self) -> bool:
        """Tokens of answers and of prompts have forms of their own, and come in that order."""
        ...

    @property
    def static_length(self) -> int:
        """Length of the one rotary table in `static` mode."""
        ...

    def cache_bytes_per_block(self, block_size: int) -> int:
        """Memory of one block, all layers together."""
        ...

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make an empty cache, giving back the one before."""
        ...

    def forward(self, batch: PagedBatch) -> Tensor:
        """Logits fp32 [L, V] on `device`; keys and values of all T tokens are in the cache afterwards."""
        ...

    def hidden_states(self, batch: PagedBatch) -> Tensor:
        """As `forward`, but final hidden states fp32 [L, hidden], after the last norm."""
        ...

    def adapter_bytes(self, num_elements: int) -> int:
        """Memory of an adapter whose matrices have so many elements together."""
        ...

    def load_adapter(self, number: int, layers: AdapterLayers) -> None:
        """Keep an adapter for the batches whose rows name it.

        Args:
            number: not in use.
            layers: whole matrices on the CPU, which fit the model; none of a mixture's experts.
        """
        ...

    def unload_adapter(self, number: int) -> None:
        """Give its memory back; no batch names it any more."""
        ...

    def describe(self) -> str:
        """What computes, and why nothing faster does: one line for logs and `telechat doctor`."""
        ...

    def close(self) -> None:
        """Give the cache back; the executor is not used afterwards."""
        ...


@runtime_checkable
class RunsAhead(Protocol):
    """What an executor may do besides, where host and device work side by side."""

    @property
    def can_run_ahead(self) -> bool:
        """Whether `run_ahead` ever does anything."""
        ...

    def run_ahead(self, chosen: HostCopy) -> None:
        """Begin the next step with tokens that the host does not know yet.

        Called after `forward` for a batch whose every row was wanted, in order. Whether the next batch is the
        one foreseen is found out when it comes; if not, nothing shows of what was begun.

        Args:
            chosen: int64 [T], the token that follows each row; -1 where there is none.
        """
        ...


class TorchExecutor:
    """Runs the modules of a model; between the projections of its layers stand the kernels of a paged cache.

    Args:
        model: in eval mode, on its device.
        kv_dtype: of the cache; the model's by default; int8 takes half the memory of bf16, int4 a third.
        deterministic: a row's result must not depend on the other rows of a step. torch's products do not
            promise that, so tokens are then computed one by one.
        kernels: by default the fastest that can run here; chosen when the cache is made, and logged.
        why_torch: why no faster executor was taken, for `describe`.
    """

    def __init__(
        self,
        model: TeleChatModel,
        *,
        kv_dtype: torch.dtype | None = None,
        deterministic: bool = False,
        kernels: PagedKernels | None = None,
        why_torch: str = "asked for by name",
    ) -> None:
        self.model = model
        self.kv_dtype = kv_dtype or model.dtype
        self.deterministic = deterministic
        self.why_torch = why_torch
        self._given_kernels = self._kernels = kernels
        self._caches: list[PagedCache] = []
        self._adapters = ModuleAdapters(model)
        self._device = model.device
        self._single_rows = bind_single_rows(model)
        for chosen, count in bind_products(model).items():
            log.info("products of %d quantised layers: %s", count, chosen)

    @property
    def config(self) -> TeleChatConfig:
        """Shape of the model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    @property
    def rope_mode(self) -> RopeMode:
        """The model's."""
        return self.model.rope_mode

    @property
    def computes_by_kind(self) -> bool:
        """One form for all tokens; deterministic ones in the order of the batch."""
        return False

    @property
    def static_length(self) -> int:
        """The model's."""
        return self.model.static_length

    def _heads(self) -> list[tuple[int, int]]:
        """(key/value heads, head dimension) of each layer: with several ranks, those of this one."""
        layers = [block.self_attention for block in self.model.transformer.blocks]
        return [(layer.num_kv_heads, layer.head_dim) for layer in layers]

    def cache_bytes_per_block(self, block_size: int) -> int:
        """Memory of one block, all layers together."""
        return sum(
            PagedCache.bytes_per_block(heads, block_size, head_dim, self.kv_dtype)
            for heads, head_dim in self._heads()
        )

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make an empty cache, giving back the one before."""
        self._caches = []
        self._caches = [
            PagedCache.allocate(
                num_blocks, heads, block_size, head_dim, dtype=self.kv_dtype, device=self._device
            )
            for heads, head_dim in self._heads()
        ]
        self._kernels = self._given_kernels or choose_paged_kernels(
            self._device,
            dtype=self.model.dtype,
            cache_dtype=self.kv_dtype,
            head_dim=self.config.head_dim,
            block_size=block_size,
        )
        log.info("paged attention: %s (%s)", self._kernels.name, self._kernels.reason)

    def adapter_bytes(self, num_elements: int) -> int:
        """In the model's dtype."""
        return num_elements * self.model.dtype.itemsize

    def load_adapter(self, number: int, layers: AdapterLayers) -> None:
        """As `Executor.load_adapter`."""
        self._adapters.load(number, layers)

    def unload_adapter(self, number: int) -> None:
        """As `Executor.unload_adapter`."""
        self._adapters.unload(number)

    @torch.inference_mode()
    def forward(self, batch: PagedBatch) -> Tensor:
        """Logits fp32 [L, V]."""
        hidden = self._hidden(batch)
        rows = torch.split(hidden, 1) if self.deterministic and len(hidden) else (hidden,)
        logits = torch.cat([self.model.project(row).float() for row in rows])
        self._adapters.add_to_logits(logits, hidden, batch.logit_adapters)
        return logits

    @torch.inference_mode()
    def hidden_states(self, batch: PagedBatch) -> Tensor:
        """Final hidden states fp32 [L, hidden]."""
        return self._hidden(batch).float()

    def _hidden(self, batch: PagedBatch) -> Tensor:
        """Final hidden states [L, hidden]."""
        if not self.deterministic:
            return self._run(batch)
        rows = torch.cat([self._run(token) for token in single_tokens(batch)])
        return rows[batch.logit_rows_L.to(self._device)]

    def _run(self, batch: PagedBatch) -> Tensor:
        assert self._caches and self._kernels is not None, "allocate comes first"
        with self._adapters.applied(batch.adapter_runs):
            return run_modules(self.model, self._kernels, self._caches, batch)

    def describe(self) -> str:
        """What computes, and why nothing faster does."""
        line = f"torch modules on {self._device} ({self.why_torch})"
        if self.deterministic:
            line += ", token by token"
        if self._kernels is not None:
            line += f"; paged attention: {self._kernels.name} ({self._kernels.reason})"
        return line

    def close(self) -> None:
        """Give the cache back, and the model as it was."""
        self._caches = []
        self._adapters.clear()
        unbind_single_rows(self._single_rows)


def run_modules(
    model: TeleChatModel, kernels: PagedKernels, caches: Sequence[PagedCache], batch: PagedBatch
) -> Tensor:
    """Final hidden states [L, hidden] from a model's modules; keys and values go into `caches`."""
    device = model.device
    cos, sin = rotary_rows(model.rotary, batch.positions_T.to(device), batch.rope_runs)
    slots, sequences = batch.slots_T.to(device), batch.sequences.to(device)

    def attend(layer: int, q_1THd: Tensor, kv_1TK2d: Tensor) -> Tensor:
        cache = caches[layer]
        q = q_1THd[0]
        kernels.rope_and_store(q, kv_1TK2d[0], cos, sin, slots, cache)
        return kernels.attention(q, cache, sequences)[None]

    hidden: Tensor = model.transformer(
        batch.token_ids_T.to(device)[None],
        AttentionInputs(cos[None], sin[None], None, is_causal=False),
        attend=attend,
        wanted=batch.logit_rows_L.to(device),
    )
    return hidden[0]


def single_tokens(batch: PagedBatch) -> Iterator[PagedBatch]:
    """The batch as batches of one token each, in order; the result of every one is wanted."""
    starts, lengths = batch.sequences.query_starts.tolist(), batch.sequences.kv_lengths.tolist()
    runs = iter(batch.rope_runs)
    stop, rope_length = next(runs)
    for index, kv_length in enumerate(lengths):
        for row in range(starts[index], starts[index + 1]):
            if row == stop:
                stop, rope_length = next(runs)
            length = kv_length - (starts[index + 1] - 1 - row)
            sequences = Sequences(
                torch.tensor([0, 1], dtype=torch.int32),
                torch.tensor([length], dtype=torch.int32),
                batch.sequences.block_tables[index : index + 1],
                most_new=1,
                longest=length,
            )
            here = slice(row, row + 1)
            yield PagedBatch(
                batch.token_ids_T[here],
                batch.positions_T[here],
                [(1, rope_length)],
                batch.slots_T[here],
                sequences,
                torch.zeros(1, dtype=torch.int64),
                [(1, adapter_of_row(batch.adapter_runs, row))] if batch.adapter_runs else (),
            )


def rotary_rows(
    tables: RotaryTables, positions_T: Tensor, rope_runs: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """cos and sin fp32 [T, d] of tokens at these positions; `rope_runs` as in `PagedBatch`."""
    lengths = {length for _, length in rope_runs}
    if len(lengths) == 1 or len({tables.settings.stretch(length) for length in lengths}) == 1:
        return tables.rows(positions_T, max(lengths))
    parts = []
    start = 0
    for stop, length in rope_runs:
        parts.append(tables.rows(positions_T[start:stop], length))
        start = stop
    return torch.cat([cos for cos, _ in parts]), torch.cat([sin for _, sin in parts])

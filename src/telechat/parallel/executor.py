"""The executor of a model spread over several processes: rank 0 works here and tells the others.

Every rank runs an ordinary executor over its part of the model; sums inside the model keep them in step. When
one ends, or fails, the others cannot go on: the call that was running raises, and so does every later one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor

from telechat.device import CPU, memory_in_use
from telechat.errors import RankError, TelechatError
from telechat.models.adapters import AdapterLayers
from telechat.models.config import TeleChatConfig
from telechat.models.decoder import RopeMode
from telechat.models.paged import Executor, PagedBatch
from telechat.parallel import wire
from telechat.parallel.adapters import cut_adapter, pack_layers
from telechat.parallel.binding import Binding, threads_per_rank
from telechat.parallel.groups import Groups
from telechat.parallel.processes import RankProcesses
from telechat.parallel.sharding import Layout
from telechat.parallel.tensor import collect_logits
from telechat.parallel.wire import Order
from telechat.registry import import_attribute

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# How long a rank that broke a connection may take to be seen as ended.
_NOTICE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """How the ranks of a model are started.

    Attributes:
        layout: how many there are and what they share.
        build: "module:attribute" of a function (settings, groups) -> Executor that every rank calls.
        settings: its first argument; values that JSON can hold.
        port: where the ranks of this machine meet; 0 takes a free one.
        bind_cpu: keep each rank to the cores of one NUMA node, where there are several.
    """

    layout: Layout
    build: str
    settings: Mapping[str, Any]
    port: int = 0
    bind_cpu: bool = True


class TensorParallelExecutor:
    """An `Executor` whose model is spread over `settings.layout.world_size` processes.

    Raises:
        RankError: a rank could not start.
        TelechatError: what building rank 0's part raises.
    """

    def __init__(self, settings: RankSettings) -> None:
        layout = settings.layout
        self._layout = layout
        self._groups = Groups(layout, 0)
        port = self._groups.listen(settings.port)
        num_threads = threads_per_rank(layout.world_size)
        self._block_size = 0
        self._failure: RankError | None = None
        self._ranks = RankProcesses(
            layout.world_size,
            {
                "tp": layout.tp,
                "ep": layout.ep,
                "build": settings.build,
                "settings": dict(settings.settings),
                "port": port,
                "bind_cpu": settings.bind_cpu,
                "num_threads": num_threads,
                "log_level": "debug" if logging.root.level == logging.DEBUG else "warning",
            },
            num_threads=num_threads,
            on_end=self._groups.abort,
        )
        self._binding = Binding(0, layout.world_size, num_threads=num_threads, bind=settings.bind_cpu)
        try:
            self._local: Executor = import_attribute(settings.build)(dict(settings.settings), self._groups)
            self._ranks.wait_until_ready()
            self._ranks.send(Order.CONNECT)
            self._connect(port)
        except BaseException:
            self._end()
            raise
        log.info("%d ranks, processes %s beside this one", layout.world_size, self._ranks.pids)

    def _connect(self, port: int) -> None:
        try:
            self._groups.connect(port, self._local.device)
        except RuntimeError as error:
            self._ranks.raise_if_ended(within_s=_NOTICE_S)
            raise RankError(f"The ranks could not meet: {error}") from error

    @property
    def config(self) -> TeleChatConfig:
        """Shape of the whole model."""
        return self._local.config

    @property
    def device(self) -> torch.device:
        """Rank 0's."""
        return self._local.device

    @property
    def rope_mode(self) -> RopeMode:
        """The model's."""
        return self._local.rope_mode

    @property
    def computes_by_kind(self) -> bool:
        """As the model's own executor."""
        return self._local.computes_by_kind

    @property
    def static_length(self) -> int:
        """The model's."""
        return self._local.static_length

    @property
    def pids(self) -> list[int]:
        """Process ids of the other ranks."""
        return self._ranks.pids

    def cache_bytes_per_block(self, block_size: int) -> int:
        """Memory of one block: of all ranks on a CPU, whose memory they share, else of one rank."""
        return self._local.cache_bytes_per_block(block_size) * self._num_sharing_memory

    @property
    def _num_sharing_memory(self) -> int:
        """Ranks whose memory is the same."""
        return self._layout.world_size if self.device.type == CPU.type else 1

    def memory_of_others(self) -> int:
        """Bytes that the other ranks hold of the memory that this one works in: on a CPU, all they hold."""
        if self.device.type != CPU.type:
            return 0
        return sum(memory_in_use(CPU, pid=pid) or 0 for pid in self.pids)

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make an empty cache on every rank."""
        self._block_size = block_size
        payload = json.dumps([num_blocks, block_size]).encode()
        self._together(Order.ALLOCATE, payload, lambda: self._local.allocate(num_blocks, block_size))

    def forward(self, batch: PagedBatch) -> Tensor:
        """Logits fp32 [L, V].

        Raises:
            RankError: another rank has ended; the executor is of no more use.
        """

        def work() -> Tensor:
            logits = collect_logits(self._local.forward(batch), self.config.vocab_size, self._groups)
            assert logits is not None
            return logits

        return self._together(Order.FORWARD, wire.pack_batch(batch, self._block_size), work)

    def hidden_states(self, batch: PagedBatch) -> Tensor:
        """Final hidden states fp32 [L, hidden]; errors as `forward`."""
        return self._together(
            Order.HIDDEN_STATES,
            wire.pack_batch(batch, self._block_size),
            lambda: self._local.hidden_states(batch),
        )

    def adapter_bytes(self, num_elements: int) -> int:
        """Most memory of an adapter: of all ranks on a CPU, whose memory they share, else of one rank."""
        return self._local.adapter_bytes(num_elements) * self._num_sharing_memory

    def load_adapter(self, number: int, layers: AdapterLayers) -> None:
        """As `Executor.load_adapter`, on every rank.

        Raises:
            RankError: as `forward`.
        """
        part = cut_adapter(layers, self.config, self._layout, 0)
        self._together(
            Order.LOAD_ADAPTER,
            wire.with_number(number, pack_layers(layers)),
            lambda: self._local.load_adapter(number, part),
        )

    def unload_adapter(self, number: int) -> None:
        """As `Executor.unload_adapter`, on every rank; errors as `forward`."""
        self._together(
            Order.UNLOAD_ADAPTER, wire.with_number(number), lambda: self._local.unload_adapter(number)
        )

    def _together(self, order: Order, payload: bytes, work: Callable[[], _Result]) -> _Result:
        if self._failure is not None:
            raise RankError(self._failure.message, hint=self._failure.hint)
        with _interrupts_wait():
            try:
                self._ranks.send(order, payload)
                return work()
            except BaseException as error:
                # Whatever it was, the ranks are no longer in step.
                self._failure = self._reason(error)
                self._end()
                if isinstance(error, RuntimeError):
                    raise self._failure from error
                raise

    def _reason(self, error: BaseException) -> RankError:
        """Why the executor cannot go on: the rank that is gone, if there is one, else what happened here."""
        if isinstance(error, RankError):
            return error
        try:
            if isinstance(error, RuntimeError):  # what a broken connection looks like
                self._ranks.raise_if_ended(within_s=_NOTICE_S)
        except RankError as found:
            return found
        what = error.message if isinstance(error, TelechatError) else f"{type(error).__name__}: {error}"
        return RankError(f"A step was broken off ({what}).", hint="Start the engine again.")

    def describe(self) -> str:
        """What computes, on how many ranks."""
        return f"{self._layout.world_size} ranks, each: {self._local.describe()}"

    def close(self) -> None:
        """End the other ranks and give the cache back."""
        if self._failure is None:
            self._failure = RankError("The executor is closed.")
            with contextlib.suppress(RankError, RuntimeError):  # whoever is gone already needs no farewell
                self._ranks.send(Order.CLOSE)
                self._groups.close(in_order=True)
            self._end()

    def _end(self) -> None:
        self._ranks.close()
        self._groups.close(in_order=False)
        self._binding.undo()
        if hasattr(self, "_local"):
            self._local.close()


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C takes effect after the step: in the middle of it, it would leave the ranks out of step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    if not callable(previous):
        yield
        return
    interrupted: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupted:
        previous(signal.SIGINT, interrupted[0])

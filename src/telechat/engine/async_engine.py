"""`AsyncEngine`: many requests at once from asyncio.

The engine works on a thread (a model already loaded) or in a process of its own (`AsyncEngine.spawn`); this
side checks requests, numbers them, and sorts what comes back into streams, waking each event loop once per
step. Knows nothing of HTTP or conversations.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import threading
import weakref
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from telechat.engine.channel import Add, Cancel, Embed, Letter, LoadAdapter, Order, Report, UnloadAdapter
from telechat.engine.engine_process import EngineDiedError, EngineProcess, Ready
from telechat.engine.engine_thread import EngineThread
from telechat.engine.intake import Intake
from telechat.engine.llm import LLM
from telechat.engine.loop import EngineClosedError, EngineLoop
from telechat.engine.outputs import Delta, EngineStats, Pooling
from telechat.engine.sampling_params import SamplingParams
from telechat.engine.streams import OpenRequest, Stream
from telechat.engine.text_intake import text_intake
from telechat.errors import RequestError, TelechatError
from telechat.tokenizer import Tokenizer

log = logging.getLogger(__name__)

DEFAULT_MAX_PENDING = 1024
# Instead of a folder: what makes the model loads this adapter too.
_WITH_THE_MODEL = ""


class QueueFullError(TelechatError):
    """More requests are pending than the engine was told to hold."""


class Model(Protocol):
    """What is known here of the model that answers: `LLM`, or `RemoteModel` for one in another process."""

    @property
    def name(self) -> str: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def default_params(self) -> SamplingParams: ...
    @property
    def intake(self) -> Intake: ...


@dataclass(frozen=True)
class RemoteModel:
    """A model in another process, as far as those who send requests must know it."""

    name: str
    tokenizer: Tokenizer
    max_model_len: int
    default_params: SamplingParams
    intake: Intake

    @classmethod
    def of(cls, ready: Ready, tokenizer: Tokenizer) -> RemoteModel:
        """From what the process told."""
        # Grammars are compiled here as well, so that a bad one is refused before the engine hears of it.
        intake = text_intake(tokenizer, **ready.intake_settings)
        return cls(ready.name, tokenizer, ready.max_model_len, ready.default_params, intake)


class Worker(Protocol):
    """Where the engine works."""

    @property
    def is_alive(self) -> bool: ...
    @property
    def num_restarts(self) -> int: ...
    def send(self, order: Order) -> None: ...
    def close(self) -> None: ...


class AsyncEngine:
    """Continuous batching behind asyncio, on a thread of this process.

    Args:
        llm: model and tokenizer. Its engine belongs to this one from now on; leave `llm.generate` alone.
        max_pending: answers being computed or waiting at once; one more is refused.

    Attributes:
        stats: of the engine, as of its last step; None before the first, also of one started again.
    """

    def __init__(self, llm: LLM, *, max_pending: int = DEFAULT_MAX_PENDING) -> None:
        self._prepare(max_pending)
        self.llm: Model = llm
        self._note_initial(llm.adapters.names)
        self.worker: Worker = EngineThread(
            EngineLoop(llm.engine, llm.intake), self._deliver, self._lose_engine
        )

    @classmethod
    def spawn(
        cls, load: Callable[[], LLM], tokenizer: Tokenizer, *, max_pending: int = DEFAULT_MAX_PENDING
    ) -> AsyncEngine:
        """An engine in a process of its own, watched and started again when it dies.

        Args:
            load: makes the `LLM` in that process; must survive pickling, such as
                `functools.partial(LLM, "demo")`.
            tokenizer: of the same model, for this process.

        Raises:
            Exception: what `load` raised there.
        """
        engine = cls.__new__(cls)
        engine._prepare(max_pending)
        level = logging.getLogger("telechat").getEffectiveLevel()
        worker = EngineProcess(
            load, engine._deliver, engine._lose_engine, engine._reload_adapters, log_level=level
        )
        engine.worker = worker
        engine.llm = RemoteModel.of(worker.ready, tokenizer)
        engine._note_initial(worker.ready.adapters)
        return engine

    def _prepare(self, max_pending: int) -> None:
        self.max_pending = max_pending
        self._keys = itertools.count()
        # A stream dropped by the garbage collector cancels itself, perhaps while this thread holds the lock.
        self._lock = threading.RLock()
        self._open: dict[int, OpenRequest] = {}
        self._num_pending = 0
        self._is_closed = False
        # Name -> folder of each adapter; by keys of orders, what is being loaded for the first time or again.
        self._adapters: dict[str, str] = {}
        self._loading: dict[int, tuple[str, str]] = {}
        self._reloading: dict[int, str] = {}
        self._initial_adapters: tuple[str, ...] = ()
        self.stats: EngineStats | None = None

    def _note_initial(self, adapters: tuple[str, ...]) -> None:
        self._initial_adapters = adapters
        self._adapters.update(dict.fromkeys(adapters, _WITH_THE_MODEL))

    @property
    def num_pending(self) -> int:
        """Answers being computed or waiting."""
        return self._num_pending

    @property
    def num_running(self) -> int:
        """Answers being computed, as of the last step."""
        return self.stats.num_running if self.stats else 0

    @property
    def num_waiting(self) -> int:
        """Answers waiting for a place, as of the last step."""
        return self.stats.num_waiting if self.stats else 0

    @property
    def is_alive(self) -> bool:
        """Requests are taken: not closed, and the engine's process, if it has one, runs."""
        return not self._is_closed and self.worker.is_alive

    @property
    def num_restarts(self) -> int:
        """How often the engine's process died and was started again."""
        return self.worker.num_restarts

    @property
    def replicas(self) -> tuple[AsyncEngine, ...]:
        """Itself: those who watch engines ask several that share the work in the same way."""
        return (self,)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that requests may ask for."""
        with self._lock:
            return tuple(self._adapters)

    async def load_adapter(self, name: str, folder: str | Path) -> None:
        """Read an adapter folder; requests may ask for it by `name` from now on.

        Running answers wait while it is read. An engine started again after its process died reads it again.

        Raises:
            ConfigError, CheckpointError: the name is taken, there is no room, or the adapter cannot be used.
            TelechatError: as `stream`.
        """
        with self._lock:
            stream = self._send(1, lambda key: LoadAdapter(key, name, str(folder)))
            self._loading[stream.key] = name, str(folder)
        await anext(stream)

    async def unload_adapter(self, name: str) -> None:
        """Take an adapter's name away. Requests that have begun keep the adapter to their end.

        Raises:
            RequestError: there is none of this name.
            TelechatError: as `stream`.
        """
        with self._lock:  # an order that is refused must leave the name
            if name not in self._adapters:
                raise RequestError(f"There is no adapter {name[:200]!r}.", parameter="model")
            stream = self._send(1, lambda key: UnloadAdapter(key, name))
            del self._adapters[name]
        await anext(stream)

    def _reload_adapters(self) -> None:
        """The engine's process was started again: these orders come before any request."""
        with self._lock:
            for name in self._initial_adapters:
                if self._adapters.get(name) != _WITH_THE_MODEL:  # it was unloaded since
                    self.worker.send(UnloadAdapter(next(self._keys), name))
            names = [name for name, folder in self._adapters.items() if folder != _WITH_THE_MODEL]
            self._reloading = {next(self._keys): name for name in names}
            for key, name in self._reloading.items():
                self.worker.send(LoadAdapter(key, name, self._adapters[name]))

    def stream(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        tenant: str = "",
        priority: int = 0,
        adapter: str | None = None,
    ) -> Stream:
        """Queue a prompt; must be called in an event loop. With n > 1 the answers' deltas come interleaved.

        Args:
            tenant: who asks; tenants share the engine fairly.
            priority: lower goes first.
            adapter: name of the one to answer with.

        Raises:
            PromptError, RequestError: a prompt or parameter this model cannot take.
            QueueFullError: too many requests are pending.
            EngineClosedError: after `close`.
            EngineDiedError: the engine's process has died and is not yet running again.
        """
        prompt = list(prompt_ids)
        self.llm.intake.check(prompt, params)
        return self._send(params.n, lambda key: Add(key, prompt, params, tenant, priority, adapter))

    async def embed(
        self,
        prompt_ids: Sequence[int],
        pooling: Pooling = "mean",
        *,
        normalize: bool = False,
        tenant: str = "",
        adapter: str | None = None,
    ) -> array[float]:
        """The vector of a prompt, from the model's final hidden states: fp32 [hidden].

        Args:
            pooling: `mean` of all tokens, or the `last` one.
            normalize: scale it to length 1.
            tenant, adapter: as for `stream`.

        Raises:
            TelechatError: as `stream`.
        """
        prompt = list(prompt_ids)
        self.llm.intake.make_embedding(prompt, pooling)
        stream = self._send(1, lambda key: Embed(key, prompt, pooling, normalize, tenant, adapter))
        delta = await anext(stream)
        assert delta.embedding is not None
        vector = array("f", delta.embedding)
        if sys.byteorder == "big":
            vector.byteswap()
        return vector

    def _send(self, num_answers: int, make_order: Callable[[int], Order]) -> Stream:
        with self._lock:
            if self._is_closed:
                raise EngineClosedError("The engine is closed.")
            if not self.worker.is_alive:
                raise EngineDiedError("The engine is not running.", hint="Try again later.")
            if self.num_pending + num_answers > self.max_pending:
                raise QueueFullError(
                    f"{self.num_pending} answers are pending and {num_answers} more were asked for; "
                    f"the limit is {self.max_pending}.",
                    hint="Try again later.",
                )
            key = next(self._keys)
            stream = Stream(key, num_answers, self._cancel, asyncio.get_running_loop())
            self._open[key] = OpenRequest(weakref.ref(stream), num_answers)
            self._num_pending += num_answers
            self.worker.send(make_order(key))
        return stream

    def close(self) -> None:
        """Stop; streams still open end with an error. Calling it again does nothing."""
        with self._lock:
            self._is_closed = True
        self.worker.close()
        self._lose_all(EngineClosedError("The engine was closed while this request was running."))

    def _cancel(self, key: int) -> None:
        with self._lock:
            request = self._open.pop(key, None)
            if request is not None:
                self._num_pending -= request.num_answers
                self.worker.send(Cancel(key))

    def _lose_engine(self, error: Exception) -> None:
        """What it last said of itself is true no more."""
        self.stats = None
        self._lose_all(error)
        with self._lock:
            self._loading.clear()

    def _lose_all(self, error: Exception) -> None:
        with self._lock:
            self._deliver(Report([Letter(key, error) for key in self._open]))

    def _deliver(self, report: Report) -> None:
        """Sort a step's letters into their streams, waking each event loop once. Called by the worker."""
        self.stats = report.stats or self.stats
        mail: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Delta | Exception]]] = {}
        with self._lock:
            for letter in report.letters:
                self._note_adapter(letter)
                request = self._open.get(letter.key)
                if request is None:  # cancelled in the meantime
                    continue
                if isinstance(letter.item, Exception):
                    del self._open[letter.key]
                    self._num_pending -= request.num_answers
                elif letter.item.finish_reason is not None:
                    request.num_answers -= 1
                    self._num_pending -= 1
                    if not request.num_answers:
                        del self._open[letter.key]
                stream = request.stream()
                if stream is not None:
                    mail.setdefault(stream.loop, []).append((stream, letter.item))
        for loop, letters in mail.items():
            try:
                loop.call_soon_threadsafe(_hand_over, letters)
            except RuntimeError:  # the loop was closed: nobody is left to read
                for stream, _ in letters:
                    self._cancel(stream.key)

    def _note_adapter(self, letter: Letter) -> None:
        """Offer an adapter that has been loaded, even if whoever asked for it has gone; offer one no longer
        that could not be loaded again.
        """
        loaded = self._loading.pop(letter.key, None)
        if loaded is not None and not isinstance(letter.item, Exception):
            name, folder = loaded
            self._adapters[name] = folder
        lost = self._reloading.pop(letter.key, None)
        if lost is not None and isinstance(letter.item, Exception):
            log.error("the adapter %r could not be loaded again: %s", lost, letter.item)
            self._adapters.pop(lost, None)


def _hand_over(letters: list[tuple[Stream, Delta | Exception]]) -> None:
    for stream, item in letters:
        stream.receive(item)

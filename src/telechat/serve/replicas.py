"""Several engines behind one service: a request goes where its beginning is known, else to the idlest.

An engine keeps the beginnings of prompts in its cache, so a conversation is cheapest where it was before.
What each engine has seen is remembered here by names of blocks, as the engine itself names them; it may have
forgotten some since, which costs time and nothing else. Knows nothing of HTTP.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from telechat.engine.async_engine import QueueFullError
from telechat.engine.blocks import BlockName, block_name, root_name
from telechat.engine.engine_process import EngineDiedError
from telechat.engine.outputs import Delta, Pooling
from telechat.engine.sampling_params import SamplingParams
from telechat.errors import ConfigError, TelechatError
from telechat.serve.contract import DeltaStream, EngineView, ServiceEngine, ServiceModel

# Tokens of one remembered piece of a prompt. Shorter common beginnings are not worth a detour.
PIECE_TOKENS = 64
# Pieces remembered of one engine when its cache's size is not known: 1M tokens.
_DEFAULT_PIECES = 16_384
# What a pending answer is reckoned to cost, in tokens of a prompt: one engine must not do all the work where
# all prompts begin alike.
PENDING_TOKENS = 64


class Replica(ServiceEngine, EngineView, Protocol):
    """One of the engines; `telechat.engine.AsyncEngine` fits."""

    @property
    def num_pending(self) -> int:
        """Answers that run or wait."""
        ...


class ReplicaSet:
    """Engines of the same model as one engine (`telechat.serve.contract.ServiceEngine`).

    Args:
        replicas: at least one; closing them is this one's business from now on.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        if not replicas:
            raise ConfigError("A service needs at least one replica.")
        self.replicas = tuple(replicas)
        self._seen = [_Memory(replica) for replica in self.replicas]

    @property
    def llm(self) -> ServiceModel:
        """The model; every replica has the same."""
        return self.replicas[0].llm

    @property
    def is_alive(self) -> bool:
        """At least one replica takes requests."""
        return any(replica.is_alive for replica in self.replicas)

    @property
    def adapters(self) -> Sequence[str]:
        """Names of the adapters that every replica has."""
        others = [set(replica.adapters) for replica in self.replicas[1:]]
        return [name for name in self.replicas[0].adapters if all(name in names for names in others)]

    async def load_adapter(self, name: str, folder: str | Path) -> None:
        """As `AsyncEngine.load_adapter`, by every replica or by none."""
        loaded: list[Replica] = []
        try:
            for replica in self.replicas:
                await replica.load_adapter(name, folder)
                loaded.append(replica)
        except TelechatError:
            for replica in loaded:
                await replica.unload_adapter(name)
            raise

    async def unload_adapter(self, name: str) -> None:
        """As `AsyncEngine.unload_adapter`, by every replica that has it."""
        holders = [replica for replica in self.replicas if name in replica.adapters]
        for replica in holders or self.replicas[:1]:
            await replica.unload_adapter(name)

    def stream(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        tenant: str = "",
        priority: int = 0,
        adapter: str | None = None,
    ) -> DeltaStream:
        """As `ServiceEngine.stream`. A replica that is full, or dies before an answer begins, is left out."""
        names = piece_names(prompt_ids, adapter)

        def start() -> DeltaStream:
            refusal: TelechatError | None = None
            for number in self._by_preference(names):
                try:
                    stream = self.replicas[number].stream(
                        prompt_ids, params, tenant=tenant, priority=priority, adapter=adapter
                    )
                except (EngineDiedError, QueueFullError) as error:
                    refusal = error
                    continue
                self._seen[number].add(names)
                return stream
            assert refusal is not None
            raise refusal

        return _Stream(start, num_tries=len(self.replicas))

    async def embed(
        self,
        prompt_ids: list[int],
        pooling: Pooling = "mean",
        *,
        normalize: bool = False,
        tenant: str = "",
        adapter: str | None = None,
    ) -> array[float]:
        """As `AsyncEngine.embed`, by the replica that has least to do; by another one if that dies."""
        for number in self._by_preference([])[:-1]:
            try:
                return await self.replicas[number].embed(
                    prompt_ids, pooling, normalize=normalize, tenant=tenant, adapter=adapter
                )
            except EngineDiedError:
                continue
        last = self._by_preference([])[0]
        return await self.replicas[last].embed(
            prompt_ids, pooling, normalize=normalize, tenant=tenant, adapter=adapter
        )

    def close(self) -> None:
        """Stop all of them."""
        for replica in self.replicas:
            replica.close()

    def _by_preference(self, names: Sequence[BlockName]) -> list[int]:
        """Numbers of replicas, the best for a prompt of these pieces first, dead ones last.

        Best is where least is to be computed: the tokens of the prompt that it has not seen, and the pending
        answers, each reckoned as `PENDING_TOKENS`.
        """

        def rank(number: int) -> tuple[bool, int, int]:
            replica = self.replicas[number]
            num_known = PIECE_TOKENS * self._seen[number].count_known(names)
            cost = PENDING_TOKENS * replica.num_pending - num_known
            return not replica.is_alive, cost, replica.num_pending

        return sorted(range(len(self.replicas)), key=rank)


class _Stream:
    """The answers of one replica; begun again at another one if it dies before it has said anything.

    Args:
        start: starts the answers at the best replica of the moment.
        num_tries: how often, in all.
    """

    def __init__(self, start: Callable[[], DeltaStream], num_tries: int) -> None:
        self._start = start
        self._num_tries_left = num_tries - 1
        self._stream = start()
        self._deltas = aiter(self._stream)

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Delta:
        while True:
            try:
                delta = await anext(self._deltas)
            except EngineDiedError:
                if not self._num_tries_left:
                    raise
                self._num_tries_left -= 1
                self._stream = self._start()
                self._deltas = aiter(self._stream)
            else:
                # From here on, beginning again would say the same twice.
                self._num_tries_left = 0
                return delta

    async def aclose(self) -> None:
        """End what is still running."""
        await self._stream.aclose()


class _Memory:
    """The pieces of prompts that a replica has seen; the oldest are forgotten first, all when it dies."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._names: OrderedDict[BlockName, None] = OrderedDict()
        self._num_restarts = replica.num_restarts

    def count_known(self, names: Sequence[BlockName]) -> int:
        """How many pieces from the first on it has seen."""
        self._forget_if_restarted()
        count = 0
        while count < len(names) and names[count] in self._names:
            count += 1
        return count

    def add(self, names: Sequence[BlockName]) -> None:
        """It is about to see these."""
        self._forget_if_restarted()
        # The end of a prompt is forgotten before its beginning.
        for name in reversed(names):
            self._names[name] = None
            self._names.move_to_end(name)
        while len(self._names) > self._capacity():
            self._names.popitem(last=False)

    def _capacity(self) -> int:
        stats = self._replica.stats
        if stats is None:
            return _DEFAULT_PIECES
        return max(1, stats.num_blocks * stats.block_size // PIECE_TOKENS)

    def _forget_if_restarted(self) -> None:
        if self._replica.num_restarts != self._num_restarts:
            self._num_restarts = self._replica.num_restarts
            self._names.clear()


def piece_names(prompt_ids: Sequence[int], adapter: str | None = None) -> list[BlockName]:
    """Names of the whole pieces of a prompt; equal names mean equal tokens and adapter up to there."""
    names: list[BlockName] = []
    parent = root_name(adapter or "")
    for start in range(0, len(prompt_ids) - PIECE_TOKENS + 1, PIECE_TOKENS):
        parent = block_name(parent, prompt_ids[start : start + PIECE_TOKENS])
        names.append(parent)
    return names

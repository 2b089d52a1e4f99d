"""The adapters of an engine by name, loaded and unloaded while it runs.

A name that is unloaded is gone for new requests at once; requests that have begun keep the adapter, and its
memory is given back when the last of them ends. Knows folders and executors, not queues.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from telechat.checkpoint import read_adapter
from telechat.checkpoint.adapter import Adapter, adaptable_layers
from telechat.device import empty_cache, memory_info
from telechat.errors import CheckpointError, ConfigError, RequestError
from telechat.models.paged import Executor

log = logging.getLogger(__name__)

DEFAULT_MAX_ADAPTERS = 8
DEFAULT_MAX_RANK = 64
_LONGEST_NAME = 200
_MIB = 1 << 20


class AdapterTable:
    """Names and numbers of the adapters that an executor holds.

    A number is never used twice, so that what was cached with one adapter is never taken for another's.

    Args:
        executor: holds their matrices.
        max_adapters: adapters in memory at once.
        max_rank: highest rank of any.

    Attributes:
        memory_left: bytes that adapters may still take; None: as many as are free on the device.
    """

    def __init__(self, executor: Executor, *, max_adapters: int, max_rank: int) -> None:
        self._executor = executor
        self._max_adapters = max_adapters
        self._max_rank = max_rank
        self._numbers = itertools.count()
        self._by_name: dict[str, int] = {}
        self._leaving: set[int] = set()
        self._num_bytes: dict[int, int] = {}
        self.memory_left: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests may ask for, in the order they were loaded."""
        return tuple(self._by_name)

    def number_of(self, name: str) -> int:
        """The number of the adapter with this name.

        Raises:
            RequestError: there is none.
        """
        number = self._by_name.get(name)
        if number is None:
            raise RequestError(f"There is no adapter {name[:_LONGEST_NAME]!r}.", parameter="model")
        return number

    def holds(self, number: int) -> bool:
        """Whether this adapter is in memory, for requests that have its number already."""
        return number in self._leaving or number in self._by_name.values()

    def load_all(self, folders: Mapping[str, str | Path]) -> None:
        """`load` each; what is wrong with one is said with its name."""
        for name, folder in folders.items():
            try:
                self.load(name, folder)
            except (CheckpointError, ConfigError) as error:
                raise ConfigError(f"Adapter {name!r}: {error.message}", hint=error.hint) from error

    def load(self, name: str, folder: str | Path) -> None:
        """Read an adapter folder and keep it under a name.

        Raises:
            ConfigError: the name is taken or empty, there is no room for one more or not enough memory, the
                folder's configuration is wrong, or the adapter is of a kind that must be merged.
            CheckpointError: its weights are missing, damaged, not finite, or do not fit the model.
        """
        check_adapter_name(name)
        if name in self._by_name:
            raise ConfigError(f"There is an adapter {name!r} already.", hint="Unload it first.")
        if len(self._by_name) + len(self._leaving) >= self._max_adapters:
            leaving = f", {len(self._leaving)} of them until their requests end" if self._leaving else ""
            raise ConfigError(
                f"{self._max_adapters} adapters are loaded{leaving}; there is no room for {name!r}.",
                hint="Unload one, or start with a higher max_loras.",
            )
        adapter = read_adapter(folder, self._executor.config, max_rank=self._max_rank)
        check_can_serve(adapter)
        layers, number = adapter.scaled_layers(), next(self._numbers)
        num_bytes = self._executor.adapter_bytes(sum(a.numel() + b.numel() for a, b in layers.values()))
        self._check_memory(name, num_bytes)
        try:
            self._executor.load_adapter(number, layers)
        except MemoryError as error:
            raise ConfigError(f"There is not enough memory for the adapter {name!r}.") from error
        self._by_name[name] = number
        self._num_bytes[number] = num_bytes
        if self.memory_left is not None:
            self.memory_left -= num_bytes
        log.info("adapter %r: rank %d, %d layers", name, adapter.max_rank, len(adapter.modules))

    def bytes_to_reserve(self, num_adapters: int) -> int:
        """Memory of so many more adapters of the highest rank on every layer that may have one.

        Raises:
            ConfigError: a number below 0.
        """
        if num_adapters < 0:
            raise ConfigError(f"reserved_loras is {num_adapters}; it must be at least 0.")
        widths = [
            sum(shape)
            for name, shape in adaptable_layers(self._executor.config).items()
            if not _is_of_expert(name)
        ]
        return num_adapters * self._executor.adapter_bytes(self._max_rank * sum(widths))

    def _check_memory(self, name: str, num_bytes: int) -> None:
        """Refused before anything is allocated: where memory runs out on one of several ranks, all end."""
        empty_cache(self._executor.device)
        memory = memory_info(self._executor.device)
        bounds = (self.memory_left, None if memory is None else memory.free_bytes)
        left = min((bound for bound in bounds if bound is not None), default=num_bytes)
        if num_bytes > left:
            raise ConfigError(
                f"The adapter {name!r} takes {num_bytes / _MIB:.1f} MiB; beside weights and cache "
                f"{max(left, 0) / _MIB:.1f} MiB are left.",
                hint="Unload another one, or start with a higher --memory-limit or fewer --num-blocks.",
            )

    def unload(self, name: str) -> None:
        """Take a name away; `forget_unused` gives the memory back.

        Raises:
            RequestError: there is no such adapter.
        """
        number = self.number_of(name)
        del self._by_name[name]
        self._leaving.add(number)

    @property
    def has_leaving(self) -> bool:
        """Some adapter waits for its last requests."""
        return bool(self._leaving)

    def forget_unused(self, numbers_in_use: Iterable[int | None]) -> None:
        """Give back the memory of unloaded adapters that no request has any more."""
        for number in self._leaving - set(numbers_in_use):
            self._executor.unload_adapter(number)
            self._leaving.remove(number)
            num_bytes = self._num_bytes.pop(number)
            if self.memory_left is not None:
                self.memory_left += num_bytes


def check_adapter_name(name: str) -> None:
    """Refuse names that could not be asked for.

    Raises:
        ConfigError: empty, too long, or with characters that cannot be printed.
    """
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ConfigError(
            f"{name[:_LONGEST_NAME]!r} is no name for an adapter.",
            hint=f"Use 1 to {_LONGEST_NAME} characters that can be printed.",
        )


def check_can_serve(adapter: Adapter) -> None:
    """Refuse adapters that are more than a low-rank product beside a layer that sees every token.

    Raises:
        CheckpointError: a DoRA, or an adapter of a mixture's experts.
    """
    merge = "Merge it into the model with `telechat.checkpoint.merge_adapter`, and serve that."
    if adapter.config.use_dora:
        raise CheckpointError("The adapter is a DoRA, which is only served merged.", hint=merge)
    expert = next((name for name in adapter.modules if _is_of_expert(name)), None)
    if expert is not None:
        raise CheckpointError(f"The adapter changes {expert}; experts are only served merged.", hint=merge)


def _is_of_expert(layer: str) -> bool:
    return ".local_experts." in layer
